"""The errors of commands with --config-dir: one line, and exit code 2."""

import pytest

from dp.commands import audit, run


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A working folder with a purifier `sm` in the folder of plug-ins `mine`."""
    (tmp_path / "mine" / "purifier").mkdir(parents=True)
    text = "_target_: sm_of_the_tests.purify\n_partial_: true\nstd: 0.1\n"
    (tmp_path / "mine" / "purifier" / "sm.yaml").write_text(text)
    (tmp_path / "sm_of_the_tests.py").write_text("def purify(x, *args, std, **more): return x\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def ran(words, monkeypatch):
    monkeypatch.setattr("sys.argv", ["run.py", *words])
    return run.main()


def audited(words, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pytest"])  # the words are arguments: nothing may read these
    return audit.main(words)


@pytest.mark.parametrize("command", [ran, audited])
@pytest.mark.parametrize(
    ("folder", "words", "said"),
    [
        ("mine", ["purifier.stdd=3"], "unknown key purifier.stdd (did you mean std?)"),
        ("nowhere", [], "nowhere"),
        ("mine", ["attack=[1]"], "need the name of an option for attack"),
        ("mine", ["+hydra.callbacks.a._target_=os.system"], "need no _target_ in the node hydra"),
        ("mine", ["+hydra.callbacks={a: {_target_: os.system}}"], "need no _target_ in the node hydra"),
        ("mine", ["results=5"], "need results as a folder"),
        ("mine", ["threat_model.eps={_target_: os.system, command: ls}"], "need threat_model.eps._target_ below"),
    ],
)
def test_one_line_and_code_2(command, folder, words, said, plugin, monkeypatch, capsys, recwarn):
    assert command(["--config-dir", folder, "purifier=sm", *words], monkeypatch) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert "unknown option" not in err
    assert not [w for w in recwarn if "hydra" in w.filename.lower()]
