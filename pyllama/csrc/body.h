/* Every kernel, over whichever vector vocabulary was included before; one object file per instruction set. */
#include "kernels.h"

#include <math.h>

#define MAX_HEAD_DIM 1024

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
    ISA_NAME, k_matmul, k_pack_tokens, k_make_d16, k_pack_panels, k_unpack, k_count_exponents, k_count_escapes, k_pack_panel, k_widen, k_rmsnorm, k_rope,
    k_swiglu, k_clamped_swiglu, k_geglu, k_softcap, k_mix, k_exp, k_cache_append, k_attend, k_conv, k_sigmoid_gate,
    k_delta, k_spin,
};
