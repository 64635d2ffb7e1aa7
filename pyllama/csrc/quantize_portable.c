/* The quantizer with the vectors every machine of an architecture has, and the formats that need no search. */
#include "quantize_body.h"

/* 16-bit floats, each rounded to nearest even. A NaN stays one; float16 ends at its largest finite number. */
static void narrow_row(pl_dtype dtype, const float *x, int64_t cols, uint8_t *out)
{
    for (int64_t c = 0; c < cols; c++) {
        uint32_t bits = float_bits(x[c]);
        uint16_t narrow;
        if ((bits & 0x7fffffff) > 0x7f800000) narrow = (uint16_t)(bits >> 16 | 0x7fff);
        else if (dtype == DT_BF16) narrow = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
        else narrow = f16_bits(x[c]);
        put16(out + 2 * c, narrow);
    }
}

void pl_quantize_rows_portable(const pl_quantizer *q, int64_t first, int64_t last)
{
    if (q->dtype != DT_F16 && q->dtype != DT_BF16) quantize_rows(q, first, last);
    else
        for (int64_t r = first; r < last; r++)
            narrow_row(q->dtype, q->x + r * q->cols, q->cols, q->out + (size_t)r * q->row_nbytes);
}

void pl_quantize_weights(const float *importance, int64_t cols, int block, float *weights)
{
    for (int64_t first = 0; first < cols; first += block) {
        float most = 0.0f;
        for (int64_t c = first; c < first + block; c++) most = importance[c] > most ? importance[c] : most;
        /* The least that a column counts lets a run of which nothing matters have a scale all the same. */
        for (int64_t c = first; c < first + block; c++)
            weights[c] = most > 0.0f ? importance[c] / most + 0x1p-24f : 1.0f;
    }
}

void pl_quantize_levels(pl_levels *l)
{
    static const int8_t levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    for (int i = 0, code = 0; i < 512; i++) {
        while (code < 15 && i - 256 >= levels[code] + levels[code + 1]) code++;
        l->level[i] = levels[code];
        l->code[i] = (uint8_t)code;
    }
}
