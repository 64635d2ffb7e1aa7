/* 16-bit weights -> float32, exactly. Included by body.h.
 *
 * Everything reads panels: 32 rows side by side, so that a row is a lane and no lane ever moves. The output is a tile,
 * tile[c * PANEL_ROWS + r].
 */
INLINE void put(float *tile, int c, int g, const vf *w) { EACH v_store(tile + (size_t)c * PANEL_ROWS + g + v * VL, w[v]); }

static void widen_pairs(pl_dtype dtype, const uint8_t *p, int64_t cols, float *tile)
{
    const uint32_t *pairs = (const uint32_t *)p;
    for (int64_t c = 0; c < cols; c += 2, pairs += PANEL_ROWS)
        for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) {
            vf even[NG], odd[NG];
            if (dtype == DT_BF16) load16_bf16_pairs(pairs + g, even, odd);
            else load16_f16_pairs(pairs + g, even, odd);
            put(tile, (int)c, g, even);
            put(tile, (int)c + 1, g, odd);
        }
}

/* `cols` columns from panel blocks at p into tile. F32 panels are tiles already. */
static const float *widen_segment(pl_dtype dtype, const uint8_t *p, int64_t cols, float *tile)
{
    if (dtype == DT_F32) return (const float *)p;
    widen_pairs(dtype, p, cols, tile);
    return tile;
}
