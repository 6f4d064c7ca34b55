"""What an output's graph of autograd looks like."""


def edges_into(leaf, out):
    """How many operations of the graph of ``out`` hand a gradient to ``leaf``."""
    waiting, seen, count = [out.grad_fn], set(), 0
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        following = [next_node for next_node, _ in node.next_functions]
        count += sum(getattr(x, "variable", None) is leaf for x in following)
        waiting += following
    return count
