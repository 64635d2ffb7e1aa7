/* OpenMP's directives and the floating-point environment, for parallel.c and its neighbours. Without OpenMP everything runs on the
 * calling thread, with the same bits. */
#ifndef PYLLAMA_PARALLEL_H
#define PYLLAMA_PARALLEL_H

#include <stdint.h>

#ifdef _OPENMP
#include <omp.h>
#define OMP(...) OMP_PRAGMA(omp __VA_ARGS__)
#define OMP_PRAGMA(...) _Pragma(#__VA_ARGS__)
#else
#define OMP(...)
#endif

/* A library built with -ffast-math may have turned subnormals off for this thread: back to IEEE, and restore. */
#if defined(__x86_64__)
#include <xmmintrin.h>
enum { CSR_STICKY = 0x3f, CSR_DEFAULT = 0x1f80 };
static inline uint64_t fp_enter(void)
{
    uint32_t csr = _mm_getcsr();
    if ((csr & ~(uint32_t)CSR_STICKY) != CSR_DEFAULT) _mm_setcsr(CSR_DEFAULT);
    return csr;
}
static inline void fp_leave(uint64_t saved)
{
    if ((saved & ~(uint64_t)CSR_STICKY) != CSR_DEFAULT) _mm_setcsr((uint32_t)saved);
}
#elif defined(__aarch64__)
static inline uint64_t fp_enter(void)
{
    uint64_t fpcr;
    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
    if (fpcr) __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
    return fpcr;
}
static inline void fp_leave(uint64_t saved)
{
    if (saved) __asm__ volatile("msr fpcr, %0" : : "r"(saved));
}
#else
static inline uint64_t fp_enter(void) { return 0; }
static inline void fp_leave(uint64_t saved) { (void)saved; }
#endif

#endif
