"""Bytes that compiled programs send, read from their text."""

from vkq_apps.bench.wire import sent_by

PROGRAM = """\
HloModule jit_step

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %sum = f32[4,8]{1,0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  %sent = (bf16[1,8]{1,0}, bf16[1,8]{1,0}) all-to-all(%y, %z), replica_groups={{0,1},{2,3}}
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}

%step (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %sum-start = ((bf16[32]{0}), bf16[32]{0}) all-reduce-start(%x), replica_groups=mesh['axis_0'=2] {'axis_0'}, to_apply=%add
}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %loop = (s32[], f32[4,8]) while(%t), condition=%stop, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %unknown = (s32[], f32[4]) while(%u), condition=%stop, body=%step
  %all-gather-start = (f32[2,8]{1,0}, f32[4,8]{1,0}) all-gather-start(%v), replica_groups=mesh['data'=4,'kv_heads'=2] {'kv_heads'}, dimensions={0}
  %moved = u8[16]{0} collective-permute(%w), source_target_pairs={{0,1},{1,0}}
}
"""  # noqa: E501


def test_collectives_are_counted_with_their_loops_and_groups():
    sent = sent_by(PROGRAM)
    assert sent.calls == {
        "all-reduce": 3 + 1,
        "all-to-all": 3,
        "all-gather": 1,
        "collective-permute": 1,
    }
    sums = 3 * (128 * 2 * 3 / 4)
    exchanged = 3 * (32 * 1 / 2)
    assert sent.wire_bytes == sums + 64 + exchanged + 128 / 2 + 16


def test_a_program_of_one_device_sends_nothing():
    sent = sent_by("ENTRY %main (p: f32[2]) -> f32[2] {\n  ROOT %y = f32[2]{0} negate(%p)\n}\n")
    assert (sent.calls, sent.wire_bytes) == ({}, 0)
