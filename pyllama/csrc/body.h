/* Every kernel, over whichever vector vocabulary was included before; one object file per instruction set. */
#include "kernels.h"

#include <math.h>

#define NG (GROUP_ROWS / VL) /* vectors in a group of rows */
#define EACH for (int v = 0; v < NG; v++)

#include "activations.h"
#include "widen.h"
#include "panels.h"
#include "codes.h"
#include "integer.h"
#include "product.h"
#include "packed.h"
#include "matmul.h"
#include "elementwise.h"
#include "attention.h"
#include "recurrent.h"

static int64_t k_spin(int64_t rounds, float *sink)
{
    vf a[12], x = v_set1(0.999f), y = v_set1(0.001f);
    for (int i = 0; i < 12; i++) a[i] = v_set1((float)i);
    for (int64_t n = 0; n < rounds; n++)
        for (int i = 0; i < 12; i++) a[i] = v_fma(a[i], x, y);
    for (int i = 1; i < 12; i++) a[0] = v_add(a[0], a[i]);
    store_tail(sink, 1, a[0]);
    return rounds * 12 * VL * 2;
}

static const pl_kernels table = {
    .isa = ISA_NAME, .matmul = k_matmul, .tile_tokens = k_tile_tokens, .make_d16 = k_make_d16,
    .to_panels = k_to_panels, .unpack = k_unpack, .count_exponents = k_count_exponents,
    .count_escapes = k_count_escapes, .compress_panel = k_compress_panel, .widen = k_widen, .rmsnorm = k_rmsnorm,
    .rope = k_rope, .swiglu = k_swiglu, .clamped_swiglu = k_clamped_swiglu, .geglu = k_geglu, .softcap = k_softcap,
    .mix = k_mix, .exp = k_exp, .cache_append = k_cache_append, .attend = k_attend, .conv = k_conv,
    .sigmoid_gate = k_sigmoid_gate, .delta = k_delta, .spin = k_spin,
};
