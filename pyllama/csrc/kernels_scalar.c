/* The kernels in plain C. */
#include "kernels.h"
#include "isa_scalar.h"
#include "body.h"

const pl_kernels *pl_kernels_scalar(void) { return &table; }
