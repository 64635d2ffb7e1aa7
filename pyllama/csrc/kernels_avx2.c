/* The kernels for x86_64 with AVX2, FMA and F16C, chosen at run time: only this file and
 * kernels_vnni.c may use them. */
#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#include "isa_avx2.h"
#include "body.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif

const pl_kernels *pl_kernels_avx2(void) { return &table; }
#else
const pl_kernels *pl_kernels_avx2(void) { return NULL; }
#endif
