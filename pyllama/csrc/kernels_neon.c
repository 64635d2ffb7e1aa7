/* The kernels for aarch64: NEON is part of its baseline, so there is nothing to ask the CPU. */
#include "kernels.h"

#if defined(__aarch64__)
#include "isa_neon.h"
#include "body.h"

const pl_kernels *pl_kernels_neon(void) { return &table; }
#else
const pl_kernels *pl_kernels_neon(void) { return NULL; }
#endif
