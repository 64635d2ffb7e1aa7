/* What the CPU says it has, by the names Linux shows, of what kernels use or might. Nothing else asks; chooses nothing. */
#include "kernels.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

static const struct { unsigned long word; uint64_t bit; const char *name; } features[] = {
    {AT_HWCAP, 1u << 1, "neon"},     {AT_HWCAP, 1u << 20, "dotprod"}, {AT_HWCAP, 1u << 10, "fp16"},
    {AT_HWCAP, 1u << 22, "sve"},     {AT_HWCAP2, 1u << 13, "i8mm"},   {AT_HWCAP2, 1u << 14, "bf16"},
};

const char *pl_cpu_feature(int index)
{
    for (size_t i = 0; i < sizeof features / sizeof *features; i++)
        if ((getauxval(features[i].word) & features[i].bit) && index-- == 0) return features[i].name;
    return NULL;
}
#elif defined(__x86_64__)
#include <cpuid.h>

/* clang before 17 has no name for it in __builtin_cpu_supports. */
static int cpu_has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}

#define FEATURE(name, present) \
    if ((present) && index-- == 0) return name;

const char *pl_cpu_feature(int index)
{
    __builtin_cpu_init();
    FEATURE("avx2", __builtin_cpu_supports("avx2"))
    FEATURE("fma", __builtin_cpu_supports("fma"))
    FEATURE("f16c", cpu_has_f16c())
    FEATURE("avx512f", __builtin_cpu_supports("avx512f"))
    FEATURE("avx512vl", __builtin_cpu_supports("avx512vl"))
    FEATURE("avx512vnni", __builtin_cpu_supports("avx512vnni"))
    return NULL;
}
#else
const char *pl_cpu_feature(int index)
{
    (void)index;
    return NULL;
}
#endif
