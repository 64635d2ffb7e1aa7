/* The kernels for aarch64 with SDOT (Cortex-A55, A76 and later), chosen at run time: those of NEON, with products of bytes
 * in one instruction. */
#include "kernels.h"

#if defined(__aarch64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#define PL_DOTPROD
#include "isa_neon.h"
#include "body.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif

const pl_kernels *pl_kernels_dotprod(void) { return &table; }
#else
const pl_kernels *pl_kernels_dotprod(void) { return NULL; }
#endif
