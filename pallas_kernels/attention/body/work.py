"""Which part of a launch is this warp's, and where its data lie."""

from collections.abc import Callable, Sequence

from pallas_kernels.attention.kernel_spec import KernelSpec
from pallas_kernels.isa.operations import Operations, Value

__all__ = ["Work"]


class Work:
    """Lane and warp numbers, the team's queries and KV head, and shares of positions.

    Lanes are numbered lane = 4 g + t. A team takes `tuning.queries` queries of one KV head; where
    they run out the last one is taken again and its result not stored.

    Attributes:
        lane, t, g, warp: numbers of this lane and warp.
        place: 8 t + g, of the lane's positions, and channels of queries, in each 32.
        channel: 16 t + g: its channels of results are 64 h + 16 t + 8 r + g.
        team: number of the team in its thread block. member: of the warp in the team.
        split: number of the thread block among those that share its teams.
        head: (outer * batch) * KV heads + KV head. sequence: outer * batch.
        stored_head: number of the KV head in the bank's arrays, layers counted.
        first_query: of the team, among those of the KV head.
        number: of the team in the launch.
        has_work: a word, 0 where the launch has more teams than work.
    """

    def __init__(self, ops: Operations, spec: KernelSpec):
        """Computes them all."""
        self._ops, self._spec, tuning = ops, spec, spec.tuning
        thread = ops.thread_index()
        self.lane = ops.bit_and(thread, 31)
        self.t, self.g = ops.bit_and(self.lane, 3), ops.shift_right(self.lane, 2)
        self.place = ops.mad(self.t, 8, self.g)
        self.channel = ops.mad(self.t, 16, self.g)
        self.warp = ops.uniform(ops.shift_right(thread, 5))
        self.team = ops.div(self.warp, tuning.team)
        self.member = ops.rem(self.warp, tuning.team)

        block = ops.block_index()
        self.split = ops.rem(block, tuning.splits)
        team = ops.mad(ops.div(block, tuning.splits), spec.block_teams, self.team)
        self.has_work = ops.where_less(team, spec.teams, 1, 0)
        team = self.number = ops.min(team, spec.teams - 1)
        self.head = ops.div(team, spec.head_teams)
        self.first_query = ops.mad(ops.rem(team, spec.head_teams), tuning.queries, 0)
        self.sequence = ops.div(self.head, spec.kv_heads)
        self.stored_head = self.head
        if spec.layers > 1:
            inner = spec.batch * spec.kv_heads
            layer = ops.uniform(ops.load(ops.pointer("layer")))
            outer = ops.div(self.head, inner)
            behind = ops.mad(outer, (spec.layers - 1) * inner, self.head)
            self.stored_head = ops.mad(layer, inner, behind)

    def share(
        self, stop: Value, start: Value = 0, *, mirrored: bool = False
    ) -> tuple[Value, Value]:
        """This warp's part of the things [start, stop) that its team divides.

        Mirrored: the last warp gets the first ones, so that of two sharings with something left
        over not the same warps have more.
        """
        ops, tuning = self._ops, self._spec.tuning
        count = ops.sub(stop, start)
        parts = tuning.splits * tuning.team
        part = ops.mad(self.split, tuning.team, self.member)
        if mirrored:
            part = ops.sub(parts - 1, part)
        first = ops.div(ops.mad(count, part, 0), parts)
        last = ops.div(ops.mad(count, part, count), parts)
        return ops.add(start, first), ops.add(start, last)

    def of_queries(
        self, name: str, first: int, count: int, owner: Value | None = None
    ) -> list[Value]:
        """Words of an operand [owners, positions], for `count` queries of the team.

        Args:
            name: of the operand. first: query of the team. owner: the team's sequence by default.
        """
        ops, spec = self._ops, self._spec
        words = []
        for number in range(first, first + count):
            position = ops.div(self.query(number), spec.queries // spec.positions)
            row = self.sequence if owner is None else owner
            index = ops.mad(row, spec.positions, position)
            words.append(ops.uniform(ops.load(ops.address(ops.pointer(name), index, 4))))
        return words

    def mine(self, words: Sequence[Value]) -> Value:
        """The word of query t, among one word for each query; the last word where t is beyond."""
        mine = words[0]
        for number, word in enumerate(words[1:], 1):
            mine = self._ops.where_less(self.t, number, mine, word)
        return mine

    def team_query(self, column: Value, first: int) -> Value:
        """Number in the team of query `first` + column; where they run out, the last one."""
        ops = self._ops
        return ops.min(ops.add(column, first), self._spec.tuning.queries - 1)

    def query(self, number: Value) -> Value:
        """Query `number` of the team, among those of the KV head."""
        last = self._spec.queries - 1
        return self._ops.min(self._ops.add(self.first_query, number), last)

    def member_after(self, first: int) -> Value:
        """Number of this warp in the team where warp `first` (modulo the team) is number 0."""
        ops, team = self._ops, self._spec.tuning.team
        return ops.rem(ops.add(self.member, -first % team), team) if first % team else self.member

    def for_each_query(self, action: Callable[[int], None]) -> None:
        """Runs `action` once for each query of the team, each in one of its warps."""
        ops, tuning = self._ops, self._spec.tuning
        for number in range(tuning.queries):

            def run(_, number=number):
                action(number)
                return []

            ops.cond(ops.equal(self.member, number % tuning.team), [], run)

    def result_row(self, number: Value) -> tuple[Value, Value]:
        """Whether query `number` of the team exists, a word, and the row of its results."""
        ops, spec = self._ops, self._spec
        exists = ops.add(self.first_query, number)
        exists = ops.where_less(exists, spec.queries, self.has_work, 0)
        return exists, ops.mad(self.split, spec.rows, self.row(self.query(number)))

    def products(self, row: Value) -> Value:
        """Address of the products with the model's tables of the query in this row."""
        pointer, size = self._ops.pointer("products"), 4 * self._spec.products
        return self._ops.address(pointer, row, size)

    def row(self, query: Value) -> Value:
        """The row of a query of the KV head in the array of queries, and in a split's results."""
        return self._ops.mad(self.head, self._spec.queries, query)
