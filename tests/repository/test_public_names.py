"""What the docstrings of the public names must say: shapes, units, errors, and where the method comes from.

What can be read from the code is: every tensor of a signature has a shape, every error that a function or a helper
in its file raises is named, every number that is returned has a unit. The rest stands in two tables.
"""

import ast
import inspect
import re
import sys
from functools import cached_property

import pytest

import chameleon_lite

NAMES = [name for name in chameleon_lite.__all__ if name != "engine"]
SHAPE = r"\((?:[A-Z]'?|…|\d|,|\s|[+·])+\)"
UNIT = re.compile(
    r"nats|tokens|bytes|seconds|scalars|rows|rank|groups|parameters|number|\bmean\b|share", re.I
)
TRANSFORMERS_OWN = ("get_", "set_")  # accessors that transformers defines
# arguments that transformers defines
GIVEN_BY_TRANSFORMERS = set(
    "input_ids attention_mask position_ids inputs_embeds logits_to_keep inputs labels".split()
)
NATS = {"average", "head_losses", "token_losses", "evaluate", "adapt", "train_heads", "fit", "learn"}
NATS |= {"ChameleonLiteForCausalLM.forward"}
SOURCES = {  # a published idea and the words that name where it is from, in its docstring or at the top of its file
    "mean_embeddings": ["Paper", "Released code"],
    "fit_clusters": ["Released code", r"k-means\+\+"],
    "arrange": ["Released code"],
    "add_lora": ["PEFT", "Paper", "released code"],
    "LoraHead": [r"Hu et al\. 2021", "released scripts"],
    "HyperHead": [r"paper's section 3\.1", "released scripts", r"Beck et al\. 2023"],
    "HeadUpdate": [r"the paper's A and B \(section 3\.1\)"],
    "apply_update": [r"the paper's A and B \(section 3\.1\)"],
    "average": ["released scripts"],
    "learn": [r"Krause et al\. 2018, 2019"],
    "OnlineClusters": ["MacQueen 1967"],
    "ChameleonLiteConfig": ["the paper's"],
}


class Public:
    """A public function, or a class with its constructor, and the file it stands in."""

    def __init__(self, name: str) -> None:
        self.name = name
        owner, _, member = name.partition(".")
        self.value = getattr(chameleon_lite, owner)
        self.owner = self.value
        if member:
            self.value = inspect.getattr_static(self.value, member)
            self.value = getattr(self.value, "func", getattr(self.value, "fget", self.value))
            self.value = getattr(self.value, "__func__", self.value)
        self.module = sys.modules[self.owner.__module__]

    @cached_property
    def doc(self) -> str:
        """The docstring and, of a class, its constructor's and the comments beside its fields; one line."""
        doc = inspect.getdoc(self.value) or ""
        if inspect.isclass(self.value):
            doc += " " + (inspect.getdoc(self.value.__init__) or "" if "__init__" in vars(self.value) else "")
            doc += " ".join(re.findall(r"^    (\w+: .*)$", inspect.getsource(self.value), re.M))
        return re.sub(r"\s+", " ", doc)

    @cached_property
    def tensors(self) -> list[str]:
        """Parameters that are always one tensor or array."""
        annotations = {p.name: str(p.annotation) for p in inspect.signature(self.value).parameters.values()}
        return [
            n for n, kind in annotations.items() if ARRAY.fullmatch(kind) and n not in GIVEN_BY_TRANSFORMERS
        ]

    @cached_property
    def returned(self) -> str:
        return "" if inspect.isclass(self.value) else str(inspect.signature(self.value).return_annotation)

    @cached_property
    def errors(self) -> set[str]:
        """Names of the errors raised by this function, this class's constructor, or a helper of its file they call."""
        tree = ast.parse(inspect.getsource(self.module))
        helpers = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        waiting, seen, raised = [self.node(tree)], set(), set()
        while waiting:
            for node in ast.walk(waiting.pop()):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    name = ast.unparse(node.exc.func).rpartition(".")[2]
                    raised.add({"unknown": "UserError"}.get(name, name))
                elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    if node.func.id == "known":  # of errors.py
                        raised.add("UserError")
                    if node.func.id in helpers.keys() - seen:
                        seen.add(node.func.id)
                        waiting.append(helpers[node.func.id])
        return {name for name in raised if name[0].isupper()}

    def node(self, tree: ast.Module) -> ast.AST:
        owner, _, member = self.name.partition(".")
        node = next(n for n in tree.body if getattr(n, "name", "") == owner)
        if isinstance(node, ast.ClassDef):
            member = member or "__init__"
            return next((n for n in node.body if getattr(n, "name", "") == member), ast.Pass())
        return node


ARRAY = re.compile(r"<class '[\w.]*\.(Tensor|ndarray)'>|[\w.| ]*\b(Tensor|ndarray)\b[\w.| ]*")


def methods() -> list[str]:
    """`Class.member` of every public function, property and class method that the public classes define."""
    kinds = (property, cached_property, classmethod, staticmethod)
    return [
        f"{name}.{member}"
        for name in NAMES
        if inspect.isclass(value := getattr(chameleon_lite, name))
        for member, kind in vars(value).items()
        if not member.startswith(("_", *TRANSFORMERS_OWN))
        and (inspect.isfunction(kind) or isinstance(kind, kinds))
    ]


ALL = [*NAMES, *methods()]


@pytest.mark.parametrize("name", ALL)
def test_every_public_name_has_a_docstring(name):
    assert Public(name).doc.strip()


@pytest.mark.parametrize("name", ALL)
def test_every_tensor_of_a_signature_has_a_shape(name):
    """Beside its name, or in a docstring of the form "vectors (M, C) to labels (M,)" as many shapes as tensors."""
    public = Public(name)
    shapes = len(re.findall(SHAPE, public.doc))
    tensors = len(public.tensors) + bool(ARRAY.fullmatch(public.returned))
    for tensor in public.tensors:
        assert shapes >= tensors or re.search(rf"\b{tensor}\b[^(]{{0,45}}{SHAPE}", public.doc), tensor
    if ARRAY.fullmatch(public.returned):
        assert shapes, f"returns {public.returned}"


@pytest.mark.parametrize("name", ALL)
def test_every_error_is_named(name):
    public = Public(name)
    assert [error for error in sorted(public.errors) if error not in public.doc] == []


@pytest.mark.parametrize("name", ALL)
def test_every_number_has_a_unit(name):
    public = Public(name)
    if public.returned in ("<class 'int'>", "<class 'float'>"):
        assert UNIT.search(public.doc)
    if name in NATS:
        assert re.search(r"\bnats\b", public.doc)


@pytest.mark.parametrize("name", SOURCES)
def test_a_published_idea_names_its_source(name):
    public = Public(name)
    text = public.doc + re.sub(r"\s+", " ", public.module.__doc__)
    assert [words for words in SOURCES[name] if not re.search(words, text)] == []


def test_the_rules_can_fail():
    """A docstring without any of it breaks every rule that applies; the tables name public names only."""
    public = Public("fit_clusters")
    assert public.tensors == ["x"] and public.errors == {"UserError"}
    assert not re.search(rf"\bx\b[^(]{{0,45}}{SHAPE}", "k-means of x into k clusters (see below)")
    assert set(SOURCES) <= set(NAMES) and NATS <= set(ALL)
