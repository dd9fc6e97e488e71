"""ACVAE among RecBole's models: its data, split, trainer and evaluation; and the message where RecBole is not there."""

import os
import subprocess
import sys

import pytest
import torch

from gen_core.evaluation.ranking import ranking_metrics, top_k

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:recbole.*")


def test_without_recbole_the_message_says_what_is_missing():
    code = (
        "import sys; sys.modules['recbole'] = None\n"
        "import gen_rec, gen_rec.data, gen_rec.methods.acvae, gen_rec.protocols\n"
        "assert len(gen_rec.data.load('catalogue').users) == 600\n"
        "from gen_core.harness.errors import UsageError\n"
        "try:\n    import gen_rec.recbole\nexcept UsageError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "RecBole cannot be imported" in done.stdout
    assert "ray <= 2.6.3, which has no wheels there" in done.stdout


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    pytest.importorskip("recbole")
    from gen_rec import recbole

    folder = tmp_path_factory.mktemp("recbole")
    here = os.getcwd()  # noqa: PTH109
    os.chdir(folder)
    argv, sys.argv = sys.argv, ["x", "--epochs=77"]
    small = {"embedding": 16, "hidden": 16, "latent": 8, "decoder": 16}
    try:
        yield recbole.prepare("ACVAE", "ml-100k", {"epochs": 1, "train_batch_size": 128, "acvae": small})
        assert sys.argv == ["x", "--epochs=77"]
    finally:
        sys.argv = argv
        os.chdir(here)


def test_one_epoch_in_recbole(prepared):
    config, trainer, (train, valid, test) = prepared
    assert config["epochs"] == 1  # the command line of the host is not RecBole's
    assert type(trainer).__name__ == "ACVAETrainer"
    # One row a user, the longest prefix: the test row's list less its last two items.
    rows = train.dataset.inter_feat
    assert len(rows) == 943
    held = test.dataset.inter_feat
    last = {int(user): row for row, user in enumerate(held["user_id"])}
    for row, user in enumerate(rows["user_id"]):
        sequence, length, item = (rows[key][row] for key in ("item_id_list", "item_length", "item_id"))
        whole, n = held["item_id_list"][last[int(user)]], int(held["item_length"][last[int(user)]])
        if n < 200:
            assert int(length) == n - 2
            assert torch.equal(sequence[: int(length)], whole[: n - 2])
            assert int(item) == int(whole[n - 2])
    before = trainer.model.acvae.output.weight.clone()
    trainer.fit(train, valid, verbose=False)
    assert not torch.equal(before, trainer.model.acvae.output.weight)
    found = trainer.evaluate(test)  # from its own checkpoint, which is no pickle
    assert set(found) == {f"{name}@{k}" for name in ("recall", "ndcg", "mrr") for k in (5, 10, 20)}

    # Our metrics on the same scores are RecBole's. It masks no history.
    rows = test.dataset.inter_feat
    scores = trainer.model.full_sort_predict(rows)
    scores[:, 0] = -torch.inf
    ours = ranking_metrics(top_k(scores, 20), list(rows["item_id"].split(1)), [5, 10, 20])
    for name, value in found.items():
        assert float(value) == pytest.approx(ours[name].mean().item(), abs=5.1e-5)  # RecBole rounds to 4 digits


def test_an_unknown_key_is_refused(prepared):
    from gen_core.harness.errors import UsageError
    from gen_rec import recbole

    with pytest.raises(UsageError, match="unknown key 'latnt'; nearest: latent"):
        recbole.prepare("ACVAE", "ml-100k", {"acvae": {"latnt": 3}})
