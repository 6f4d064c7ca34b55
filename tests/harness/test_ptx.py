from __future__ import annotations

from dynbench.harness.ptx import INSTRUCTIONS, count_instructions


def test_instructions_are_counted_by_kind_and_comments_are_not():
    counts = count_instructions("""
        // mma.sync would be faster than ld.global
        .loc 1 20 11 // tiles.py:20:11 @[ ex2.py:1:1 ]
        ld.param.u64 %rd1, [kernel_param_0];
        @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
        ld.relaxed.gpu.global.b32 %r5, [ %rd1 + 0 ];
        wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f1}, %rd2, %rd3, p, 1, 1, 0, 0;
        wgmma.wait_group.sync.aligned 0;
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %f1 }, { %r1 }, { %r2 }, { %f1 };
        @%p2 tcgen05.mma.cta_group::1.kind::f16 [ %r1 + 0 ], %rd1, %rd2, %r2, %p1;
        cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;
        cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1];
        st.shared.v4.b32 [ %r1 ], { %r1, %r2, %r3, %r4 };
        ex2.approx.ftz.f32 %f2, %f1;
        atom.global.gpu.acq_rel.add.f32 %f3, [ %rd1 + 0 ], %f2;
        bar.sync 0;
    """)
    once = ("mma_sync", "wgmma", "tcgen05", "async_copy", "bulk_copy", "shared_store")
    once = (*once, "exponential", "atomic", "block_barrier")
    assert counts == dict.fromkeys(INSTRUCTIONS, 0) | dict.fromkeys(once, 1) | {"global_load": 2}
