/* Which instruction sets this binary and this CPU have, out of the list in kernels.h. */
#include "kernels.h"

#include <string.h>

static int cpu_has(const char *name)
{
    const char *found;
    for (int i = 0; (found = pl_cpu_feature(i)) != NULL; i++)
        if (!strcmp(found, name)) return 1;
    return 0;
}

#define ENTRY(name, ...) {pl_kernels_##name, {__VA_ARGS__}},
static const struct {
    const pl_kernels *(*table)(void);
    const char *needs[8]; /* NULL at the end */
} isas[] = {PL_ISAS(ENTRY)};

const pl_kernels *pl_isa(int index)
{
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        const char *const *needed = isas[i].needs;
        while (*needed && cpu_has(*needed)) needed++;
        const pl_kernels *table = *needed ? NULL : isas[i].table();
        if (table && index-- == 0) return table;
    }
    return NULL;
}
