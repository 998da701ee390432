"""Record the token counts of Python's own top-level functions and classes as `recorded_lengths.npy`.

Run it as `python -m tests.studies.record_lengths`; it needs `pip install tokenizers`.
"""

import ast
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

VOCABULARY = 8192
OUTPUT = Path(__file__).parents[2] / "collators" / "data" / "recorded_lengths.npy"
EXCLUDED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "_bundled", "lib-dynload", "__pycache__"}
)


def source_files(root: Path) -> list[Path]:
    """Return the library's own Python files in the order of their relative POSIX paths.

    Test folders, installed packages and files generated for one machine (`_sysconfigdata*`) stay out.
    """
    files = [
        path
        for path in root.rglob("*.py")
        if EXCLUDED_FOLDERS.isdisjoint(path.relative_to(root).parts)
        and not path.name.startswith("_sysconfigdata")
        and path.name not in {"sitecustomize.py", "usercustomize.py"}
    ]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def documents(root: Path) -> Iterator[str]:
    """Yield the source of each top-level function and class, decorators included, in file order."""
    for path in source_files(root):
        source = path.read_text(encoding="utf-8")
        # str.splitlines would also cut at form feeds, which `ast` does not count as lines.
        lines = source.split("\n")
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                yield "\n".join(lines[first - 1 : node.end_lineno])


def token_counts(texts: list[str]) -> list[int]:
    """Return the token count of each text under a byte-level BPE trained on all of them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]


def main() -> None:
    """Write `recorded_lengths.npy` beside this file and print the numbers that README.md states."""
    import tokenizers

    root = Path(sysconfig.get_paths()["stdlib"])
    texts = list(documents(root))
    lengths = np.array(token_counts(texts), dtype=np.int32)
    np.save(OUTPUT, lengths, allow_pickle=False)

    print(f"CPython {platform.python_version()}, tokenizers {tokenizers.__version__}, numpy {np.__version__}")
    print(f"files {len(source_files(root))}, documents {len(lengths)}, tokens {int(lengths.sum())}")
    print(f"characters per token {sum(map(len, texts)) / int(lengths.sum()):.2f}, mean {lengths.mean():.1f}")
    for share in (0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1):
        print(f"quantile {share:.2f}: {int(np.quantile(lengths, share, method='inverted_cdf'))}")
    for limit in (64, 128, 256, 512, 1024, 2048, 4096):
        print(f"longer than {limit}: {int((lengths > limit).sum())}")


if __name__ == "__main__":
    main()
