/* Whether an x86_64 CPU has F16C. clang before 17 has no name for it in __builtin_cpu_supports. */
#include <cpuid.h>

static inline int cpu_has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}
