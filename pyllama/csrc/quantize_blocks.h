/* Codes, scales and minimums of one block -> its bytes, as codes.h and integer.h read them. code[c] is that of column c, from 0. */

INLINE void put16(uint8_t *p, uint16_t bits)
{
    p[0] = (uint8_t)bits;
    p[1] = (uint8_t)(bits >> 8);
}
/* 32 codes: the low halves in nibbles, column j beside column j + 16. */
INLINE void put_nibbles(uint8_t *p, const uint8_t *code)
{
    for (int j = 0; j < 16; j++) p[j] = (uint8_t)((code[j] & 15) | (code[j + 16] & 15) << 4);
}
/* Bit 4 of 32 codes, a bit each. */
INLINE void put_fifth_bits(uint8_t *p, const uint8_t *code)
{
    for (int i = 0; i < 4; i++) {
        p[i] = 0;
        for (int j = 0; j < 8; j++) p[i] |= (uint8_t)((code[8 * i + j] >> 4 & 1) << j);
    }
}
/* Bits 0 and 1 of 256 codes: those of four columns, 32 apart, in a byte. */
INLINE void put_pairs(uint8_t *p, const uint8_t *code)
{
    for (int half = 0; half < 2; half++, p += 32, code += 128)
        for (int l = 0; l < 32; l++)
            p[l] = (uint8_t)((code[l] & 3) | (code[l + 32] & 3) << 2 | (code[l + 64] & 3) << 4 | (code[l + 96] & 3) << 6);
}
/* 256 codes' low halves: columns 32 apart in a byte. */
INLINE void put_halves(uint8_t *p, const uint8_t *code)
{
    for (int c = 0; c < 4; c++, p += 32, code += 64)
        for (int l = 0; l < 32; l++) p[l] = (uint8_t)((code[l] & 15) | (code[l + 32] & 15) << 4);
}
/* Eight scales and minimums of 6 bits, in 12 bytes. */
INLINE void put_scale_pairs(uint8_t *p, const uint8_t *scale, const uint8_t *minimum)
{
    for (int i = 0; i < 4; i++) {
        p[i] = (uint8_t)(scale[i] | scale[i + 4] >> 4 << 6);
        p[i + 4] = (uint8_t)(minimum[i] | minimum[i + 4] >> 4 << 6);
        p[i + 8] = (uint8_t)((scale[i + 4] & 15) | (minimum[i + 4] & 15) << 4);
    }
}

INLINE void put_block(pl_dtype dtype, uint8_t *p, const uint8_t *code, const int8_t *scale, const uint8_t *minimum,
                      const uint16_t *units)
{
    const uint8_t *positive = (const uint8_t *)scale;
    switch (dtype) {
    case DT_Q4_0:
    case DT_IQ4_NL:
        put16(p, units[0]);
        put_nibbles(p + 2, code);
        break;
    case DT_Q4_1:
        put16(p, units[0]);
        put16(p + 2, units[1]);
        put_nibbles(p + 4, code);
        break;
    case DT_Q5_0:
        put16(p, units[0]);
        put_fifth_bits(p + 2, code);
        put_nibbles(p + 6, code);
        break;
    case DT_Q5_1:
        put16(p, units[0]);
        put16(p + 2, units[1]);
        put_fifth_bits(p + 4, code);
        put_nibbles(p + 8, code);
        break;
    case DT_Q8_0:
        put16(p, units[0]);
        for (int j = 0; j < 32; j++) p[2 + j] = (uint8_t)(code[j] - 127);
        break;
    case DT_Q2_K:
        for (int k = 0; k < 16; k++) p[k] = (uint8_t)(positive[k] | minimum[k] << 4);
        put_pairs(p + 16, code);
        put16(p + 80, units[0]);
        put16(p + 82, units[1]);
        break;
    case DT_Q3_K:
        for (int l = 0; l < 32; l++) {
            p[l] = 0;
            for (int i = 0; i < 8; i++) p[l] |= (uint8_t)((code[32 * i + l] >> 2) << i);
        }
        put_pairs(p + 32, code);
        memset(p + 104, 0, 4);
        for (int k = 0; k < 16; k++) {
            uint8_t raised = (uint8_t)(scale[k] + 32);
            p[96 + k % 8] = (uint8_t)(k < 8 ? raised & 15 : p[96 + k % 8] | (raised & 15) << 4);
            p[104 + k % 4] |= (uint8_t)((raised >> 4) << (2 * (k / 4)));
        }
        put16(p + 108, units[0]);
        break;
    case DT_Q4_K:
        put16(p, units[0]);
        put16(p + 2, units[1]);
        put_scale_pairs(p + 4, positive, minimum);
        put_halves(p + 16, code);
        break;
    case DT_Q5_K:
        put16(p, units[0]);
        put16(p + 2, units[1]);
        put_scale_pairs(p + 4, positive, minimum);
        for (int l = 0; l < 32; l++) {
            p[16 + l] = 0;
            for (int i = 0; i < 8; i++) p[16 + l] |= (uint8_t)((code[32 * i + l] >> 4) << i);
        }
        put_halves(p + 48, code);
        break;
    case DT_Q6_K:
        for (int half = 0; half < 2; half++) {
            const uint8_t *c = code + 128 * half;
            for (int l = 0; l < 64; l++) p[64 * half + l] = (uint8_t)((c[l] & 15) | (c[l + 64] & 15) << 4);
            for (int l = 0; l < 32; l++)
                p[128 + 32 * half + l] = (uint8_t)(c[l] >> 4 | c[l + 32] >> 4 << 2 | c[l + 64] >> 4 << 4 | c[l + 96] >> 4 << 6);
        }
        memcpy(p + 192, scale, 16);
        put16(p + 208, units[0]);
        break;
    case DT_IQ4_XS: {
        uint16_t high = 0;
        put16(p, units[0]);
        for (int k = 0; k < 8; k++) {
            uint8_t raised = (uint8_t)(scale[k] + 32);
            p[4 + k / 2] = (uint8_t)(k % 2 ? p[4 + k / 2] | (raised & 15) << 4 : raised & 15);
            high |= (uint16_t)((raised >> 4) << (2 * k));
            put_nibbles(p + 8 + 16 * k, code + 32 * k);
        }
        put16(p + 2, high);
        break;
    }
    default: break;
    }
}
