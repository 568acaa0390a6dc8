"""Bad configs and bad values of --set."""

from __future__ import annotations

from bad_files import a_file, a_socket, fifo, link, sparse, with_set

ALIASES = "".join(f"x{n}: &x{n} [{', '.join(f'*x{n - 1}' for _ in range(10))}]\n" for n in range(1, 12))
CONFIG_FILES = {
    "empty": (b"", "expected the sections"),
    "null": (b"null\n", "expected the sections"),
    "list": (b"- model\n", "expected the sections"),
    "text": (b"hello\n", "expected the sections"),
    "nested deeply in flow": (b"model: " + b"[" * 30_000, "nested too deeply"),
    "nested deeply in mappings": (b"model: " + b"{a: " * 10_000, "nested too deeply"),
    "nested deeply in blocks": (b"- " * 5_000 + b"a\n", "nested too deeply"),
    "aliases that mean billions": (("x0: &x0 [1, 1, 1, 1]\n" + ALIASES).encode(), "more than 10,000 values"),
    "aliases that mean billions in a known key": (
        ("x0: &x0 [1, 1]\n" + ALIASES + "pipeline: {layers_per_ipu: *x11}\n").encode(),
        "more than 10,000 values",
    ),
    "merges that mean billions": (
        b"a0: &a0 {k: 1}\n"
        + b"".join(b"a%d: &a%d {<<: [%s]}\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 9)),
        "more than 10,000 values",
    ),
    "alias of itself": (b"model: &a [*a]\n", "an alias repeats the value that contains it"),
    "mapping of itself": (b"model: &a {b: *a}\n", "an alias repeats the value that contains it"),
    "too long": (b"model: {}\n" + b"# comment\n" * 7_000, "at most 65,536 are read"),
    "Latin-1": ("model: é\n".encode("latin-1"), "not a text file"),
    "UTF-16": ("model: {}\n".encode("utf-16"), "not a text file"),
    "NUL": (b"model: \0\n", "not YAML"),
    "control character": (b"model: \x1b[2J\n", "not YAML"),
    "tab": (b"model:\n\tdepth: 1\n", "line 2"),
    "key twice": (b"model: {depth: 1, depth: 2}\n", "'depth' is given twice"),
    "number as key": (b"1: 2\n", "key 1 must be a string"),
    "list as key": (b"? [a]\n: 1\n", "must be a string"),
    "long key twice": (b"%s: 1\n" % (b"k" * 900) * 2, "is given twice"),
    "open quote": (b"model: 'a\n", "line"),
    "unknown alias": (b"model: *nothing\n", "undefined alias"),
    "two documents": (b"model: {}\n---\nmodel: {}\n", "line 2"),
    "call of a function": (b"model: !!python/object/apply:os.system [touch x]\n", "could not determine a constructor"),
    "integer that is none": (b"model: {depth: !!int foo}\n", "a value does not fit its type"),
    "date that is none": (b"model: {depth: !!timestamp 2001-99-99}\n", "a value does not fit its type"),
    "binary that is none": (b"model: !!binary x\n", "line 1"),
    "integer of 5,000 digits": (b"model: {depth: %s}\n" % (b"9" * 5_000), "5,000 digits"),
    "hexadecimal integer of 5,000 digits": (b"model: {depth: 0x%s}\n" % (b"f" * 5_000), "5,002 digits"),
    "key of 60,000 letters": (b"model: {%s: 1}\n" % (b"k" * 900), "unknown key"),
    "value of 60,000 letters": (b"model: {depth: %s}\n" % (b"v" * 60_000), "model.depth"),
    "version of YAML": (b"%YAML 9.9\n---\nmodel: {}\n", "line"),
    "name with commands of a terminal": (b'model: {"\\e[2J\\e]0;x\\a": 1}\n', "\\x1b[2J"),
    "section that is a number": (b"model: 3\n", "model"),
    "half a surrogate": (b'data: {path: "\\ud800"}\n', ""),
}
SPECIAL = {
    "folder": (lambda p: (p / "bad.yaml").mkdir(), "directory"),
    "pipe": (fifo("bad.yaml"), "not a regular file"),
    "socket": (a_socket("bad.yaml"), "not a regular file"),
    "endless device": (link("bad.yaml", "/dev/zero"), "not a regular file"),
    "null device": (link("bad.yaml", "/dev/null"), "not a regular file"),
    "6 GB": (sparse("bad.yaml"), "at most 65,536 are read"),
    "link to nothing": (link("bad.yaml", "nowhere"), "No such file"),
    "link to itself": (link("bad.yaml", "bad.yaml"), "symbolic links"),
}
SETTINGS = {
    "NaN": ("optim.learning_rate=.nan", "learning_rate"),
    "infinity": ("optim.learning_rate=.inf", "learning_rate"),
    "float beyond floats": ("optim.learning_rate=1e999", "learning_rate"),
    "negative rate": ("optim.learning_rate=-1.0", "learning_rate"),
    "no updates": ("run.updates=0", "updates"),
    "negative updates": ("run.updates=-5", "updates"),
    "updates beyond 31 bits": ("run.updates=99999999999", "updates"),
    "integer of 5,000 digits": ("run.updates=" + "9" * 5_000, "5,000 digits"),
    "truth for a number": ("run.updates=true", "updates"),
    "text for a number": ("run.updates='3'", "updates"),
    "mapping for a number": ("run.updates={a: 1}", "updates"),
    "fraction": ("run.updates=1.5", "updates"),
    "sexagesimal": ("run.updates=1:00:00:00:00:00:00:00", "updates"),
    "empty path": ("data.path=''", "data.path"),
    "NUL in a path": (r'data.path="a\0b"', "data.path"),
    "NUL in weights": (r'model.init="a\0b"', "model.init"),
    "NUL in a cache": (r'pipeline.executable_cache="a\0b"', "executable_cache"),
    "path of 5,000 letters": ("data.path=" + "p" * 5_000, "data.path"),
    "nothing": ("", "--set is empty"),
    "no key": ("model.=3", "section.key=value"),
    "no section": (".depth=3", "no section"),
    "only =": ("=", "section.key=value"),
    "section alone": ("model=3", "section.key=value"),
    "key in a key": ("model.depth.x=3", "unknown key"),
    "100,000 letters": ("model.x" + "k" * 100_000, "section.key=value"),
    "value of 100,000 letters": ("model.depth=" + "v" * 100_000, "100,000 characters"),
    "open bracket": ("model.depth=[", "line 1"),
    "deep list": ("model.depth=" + "[" * 5_000, "nested too deeply"),
    "aliases": ("model.depth=[&a [1, 1], &b [*a, *a], *c]", "undefined alias"),
    "escapes of a terminal": ('model."\x1b[2J"=3', "\\x1b[2J"),
    "newline in a key": ("model.a\nb=3", "--set model.a b=3: unknown key"),
    "mean of text": ("data.mean=[a, b, c]", "data.mean"),
    "mean of two": ("data.mean=[0.5, 0.5]", "data.mean"),
    "std of zero": ("data.std=[0.0, 0.5, 0.5]", "std"),
    "crop backwards": ("data.crop_scale=[1.0, 0.1]", "crop_scale"),
    "negative layers": ("pipeline.layers_per_ipu=[-1, 5]", "layers_per_ipu"),
    "layers that are text": ("pipeline.layers_per_ipu=[a]", "layers_per_ipu"),
    "option of NaN": ("pipeline.engine_options={a: .nan}", "engine_options"),
    "option of infinity": ("pipeline.engine_options={a: -.inf}", "engine_options"),
    "option of PopART of NaN": ("pipeline.popart_options={outlineThreshold: .nan}", "outlineThreshold"),
    "option that is a list": ("pipeline.engine_options={a: [1]}", "engine_options"),
    "unknown option of PopART": ("pipeline.popart_options={nonsense: 1}", "popart_options"),
    "variant that is a number": ("model.variant=3", "variant"),
    "width of a planet": ("model.width=1000000000000", "width"),
    "seed that is a list": ("run.seed=[1]", "seed"),
    "sha256 that is none": ("model.init_sha256=abc", "init_sha256"),
    "workers": ("data.num_workers=100000", "num_workers"),
}

CASES = {}
"""Cases of test_bad_inputs.py by their names."""
for name, (content, expected) in CONFIG_FILES.items():
    CASES["config: " + name] = (a_file("bad.yaml", content), ["plan", "bad.yaml"], expected)
for name, (make, expected) in SPECIAL.items():
    CASES["config: " + name] = (make, ["plan", "bad.yaml"], expected)
for name, (setting, expected) in SETTINGS.items():
    CASES["set: " + name] = (None, with_set(setting), expected)
