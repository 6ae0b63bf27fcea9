"""YAML and JSON of users: a key given twice and text that grows or never ends are refused."""

from collections.abc import Hashable
from typing import Any

import yaml

MOST = 10_000  # values in a text, those that aliases repeat included
DEEPEST = 100  # lists and mappings inside each other


def load_yaml(text: str) -> Any:
    """Parse YAML, or JSON, which is YAML, into plain values.

    Raises:
        ValueError, yaml.YAMLError: for what is neither, a key that occurs twice, and more than
            MOST values or DEEPEST levels, such as aliases of aliases or an alias of itself.
    """
    loader = StrictLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if count_values(node, {}) > MOST:
            raise too_large()
        return loader.construct_document(node)
    except RecursionError as error:  # anchors that name each other, line after line
        raise too_deep() from error
    finally:
        loader.dispose()


def too_large() -> ValueError:
    return ValueError(f"it has more than {MOST:,} values, aliases counted")


def too_deep() -> ValueError:
    return ValueError(f"its lists and mappings are more than {DEEPEST} deep")


class StrictLoader(yaml.SafeLoader):
    """Loader of plain values that counts as it reads, so that it stops early."""

    def __init__(self, text: str):
        super().__init__(text)
        self.count = self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Read a value with all that is in it."""
        self.count += 1
        self.depth += 1
        if self.count > MOST:
            raise too_large()
        if self.depth > DEEPEST:
            raise too_deep()
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Make a dict; a key of the mapping itself may replace one that is merged in (<<)."""
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                continue
            name = self.construct_object(key)
            if name in lines:
                first = "" if lines[name] == line else f"{lines[name]} and "
                raise ValueError(f"{name} is given twice, line {first}{line}")
            lines[name] = line
        return super().construct_mapping(node, deep)


def count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """Count the values in a node, each as often as aliases repeat it.

    Args:
        counts: of nodes that were counted before, by id; 0 while a node is counted.

    Raises:
        ValueError: for a node that is inside itself.
    """
    known = counts.get(id(node))
    if known == 0:
        raise ValueError(f"the alias of line {node.start_mark.line + 1} is inside itself")
    if known is not None or isinstance(node, yaml.ScalarNode):
        return known or 1
    counts[id(node)] = 0
    children = node.value
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    counts[id(node)] = 1 + sum(count_values(child, counts) for child in children)
    return counts[id(node)]
