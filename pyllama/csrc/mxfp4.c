/* MXFP4 as gpt-oss's folders hold it -> blocks of it as GGUF and the kernels have them: the same codes, moved. */
#include "kernels.h"

#include <string.h>

#define LOW 0x0f0f0f0f0f0f0f0fu
#define BLOCK_CODES 16

void pl_join_mxfp4(const uint8_t *codes, int64_t codes_stride, const uint8_t *scales, int64_t scales_stride, int64_t rows,
                   int64_t blocks, uint8_t *out)
{
    for (int64_t r = 0; r < rows; r++, codes += codes_stride, scales += scales_stride)
        for (int64_t b = 0; b < blocks; b++, out += 1 + BLOCK_CODES) {
            /* Bytes of weights 0 to 15 and 16 to 31, the lower of two first; to become weight i beside weight 16 + i. */
            uint64_t first, second;
            memcpy(&first, codes + b * BLOCK_CODES, 8);
            memcpy(&second, codes + b * BLOCK_CODES + 8, 8);
            const uint64_t even = (first & LOW) | (second & LOW) << 4, odd = (first >> 4 & LOW) | (second & ~LOW);
            out[0] = scales[b];
            for (int i = 0; i < 8; i++) {
                out[1 + 2 * i] = (uint8_t)(even >> 8 * i);
                out[2 + 2 * i] = (uint8_t)(odd >> 8 * i);
            }
        }
}
