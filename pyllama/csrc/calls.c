/* Calls of kernels, kept as data: no arithmetic here. */
#include "kernels.h"

int pl_make_calls(const pl_kernels *k, int threads, const pl_call *calls, int64_t n, const pl_batch *batch)
{
    for (const pl_call *c = calls; c < calls + n; c++)
        switch (c->what) {
        case CALL_INPUT:
            pl_make_input(k, threads, c->input.form, c->input.x, c->input.tokens, c->input.cols, c->input.memory, c->input.out);
            break;
        case CALL_MATMUL:
            pl_matmul(k, threads, c->matmul.w, c->matmul.out, c->matmul.outs, c->matmul.x);
            break;
        case CALL_RMSNORM:
            pl_rmsnorm(k, threads, c->rmsnorm.x, c->rmsnorm.weight, c->rmsnorm.eps, c->rmsnorm.rows, c->rmsnorm.cols,
                       c->rmsnorm.out);
            break;
        case CALL_ROPE:
            pl_rope(k, threads, c->rope.x, c->rope.cos, c->rope.sin, c->rope.tokens, c->rope.heads, c->rope.head_dim,
                    c->rope.rotated, c->rope.interleaved);
            break;
        case CALL_ADD:
            pl_add(threads, c->add.x, c->add.y, c->add.factor, c->add.broadcast, c->add.rows, c->add.cols, c->add.out);
            break;
        case CALL_SCALE:
            pl_scale(threads, c->add.x, c->add.y, c->add.broadcast, c->add.rows, c->add.cols, c->add.out);
            break;
        case CALL_SWIGLU:
            pl_swiglu(k, threads, c->glu.gate, c->glu.up, c->glu.out, c->glu.n);
            break;
        case CALL_GEGLU:
            pl_geglu(k, threads, c->glu.gate, c->glu.up, c->glu.out, c->glu.n);
            break;
        case CALL_APPEND:
            c->attention.a->batch = batch;
            pl_cache_append(k, threads, c->attention.a, c->attention.k, c->attention.v);
            break;
        case CALL_ATTEND:
            c->attention.a->batch = batch;
            if (pl_attend(k, threads, c->attention.a, c->attention.q, c->attention.out)) return -1;
            break;
        }
    return 0;
}
