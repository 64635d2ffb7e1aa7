/* The kernels for x86_64 with AVX512-VNNI: those of AVX2, with products of bytes in one instruction. Of AVX512 only the
 * 256-bit forms are used, for which no CPU lowers its clock. */
#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#ifdef PL_VNNI_IN_AVX2
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512vl,avx512vnni"))), apply_to = function)
#endif
#elif defined(PL_VNNI_IN_AVX2)
#pragma GCC target("avx2,fma,f16c")
#else
#pragma GCC target("avx2,fma,f16c,avx512vl,avx512vnni")
#endif
#define PL_VNNI
#include "isa_avx2.h"
#include "body.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif

const pl_kernels *pl_kernels_vnni(void) { return &table; }
#else
const pl_kernels *pl_kernels_vnni(void) { return NULL; }
#endif
