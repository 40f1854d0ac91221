"""Any transformers encoder in a local folder: one row a sentence, a version that is its digest."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import fusion
from fusion import Modality, NoteInput, PatientInputs
from fusion.backbones import text_version
from fusion.batch import collate
from fusion.embedding import Embedder
from tests.fusion import simulated

WORDS = (
    *("patient", "is", "well", "short", "of", "breath", "today", "no", "fever", "oxygen", "was", "given"),
    *("dyspnoea", "stable", ".", ","),
)
NOTE = "Patient is well. No fever today, oxygen was given. Short of breath."


def save_encoder(folder: Path, *, seed: int = 0, width: int = 16) -> Path:
    """A tiny BERT with a word tokenizer, as `save_pretrained` leaves them."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(vocab={w: i for i, w in enumerate(vocabulary.read_text().split())}).save_pretrained(
        folder
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS) + 5, hidden_size=width, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=300,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("text") / "clinical")


def test_a_folder_is_a_text_backbone_with_one_row_a_sentence(folder: Path) -> None:
    backbone = fusion.load_text_backbone(str(folder))
    rows = backbone.embed(NOTE)
    assert backbone.width == 16
    assert rows.shape == (3, 16)
    assert rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
    assert backbone.embed(" ").shape == (0, 16)


def test_the_other_sentences_and_their_padding_change_nothing(folder: Path) -> None:
    backbone = fusion.load_text_backbone(str(folder))
    alone = np.concatenate([backbone.embed(sentence) for sentence in fusion.split_sentences(NOTE)])
    assert backbone.embed(NOTE) == pytest.approx(alone, abs=1e-5)
    many = backbone.embed("\n".join(["No fever."] * 70))  # more than go through at once
    assert many == pytest.approx(np.repeat(many[:1], 70, axis=0), abs=1e-5)


def test_a_very_long_sentence_is_cut_and_not_an_error(folder: Path) -> None:
    rows = fusion.load_text_backbone(str(folder)).embed("patient " * 2000)
    assert rows.shape == (1, 16)
    assert np.isfinite(rows).all()


def test_the_version_is_that_of_weights_and_tokenizer(folder: Path, tmp_path: Path) -> None:
    held = fusion.load_text_backbone(str(folder)).version
    assert held == text_version(str(folder))
    weights = save_encoder(tmp_path / "weights", seed=1)
    words = tmp_path / "words"
    shutil.copytree(folder, words)
    told = (words / "tokenizer.json").read_text()
    (words / "tokenizer.json").write_text(told.replace('"fever"', '"rigor"'))
    digests = {text_version(str(one)).rpartition(":")[2] for one in (folder, weights, words)}
    assert len(digests) == 3
    same = tmp_path / "same"
    shutil.copytree(folder, same)
    assert text_version(str(same)).rpartition(":")[2] == held.rpartition(":")[2]


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_says_which(folder: Path, tmp_path: Path, file: str) -> None:
    torn = tmp_path / f"torn-{file}"
    shutil.copytree(folder, torn)
    (torn / file).unlink()
    with pytest.raises(fusion.UnknownEncoder, match=file.replace(".", r"\.")):
        fusion.load_text_backbone(str(torn))


def test_only_safetensors_are_read(folder: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(fusion.UnknownEncoder, match=r"model\.safetensors"):
        fusion.load_text_backbone(str(pickled))


@pytest.fixture(scope="module")
def bundle(folder: Path) -> fusion.Bundle:
    """A small model on that encoder."""
    config = simulated.make_config(
        outcomes=simulated.OUTCOMES[:1],
        modalities=(Modality.TEXT,),
        text_backbone=str(folder),
        epochs=1,
        folds=2,
    )
    examples = [
        fusion.Example(
            PatientInputs(key=str(n), notes=(NoteInput(f"n{n % 2}", WORDS_OF[n % 2]),)),
            {"icu": n % 2},
            str(n),
        )
        for n in range(40)
    ]
    return fusion.train(examples, [], config)


WORDS_OF = ("Patient is well. No fever.", "Short of breath. No fever.")
PATIENT = PatientInputs(key="x", notes=(NoteInput("new", WORDS_OF[1]),))


def risk(bundle: fusion.Bundle) -> float:
    return fusion.predict(bundle, [PATIENT])[0].outcomes[0].risk


def test_a_bundle_goes_where_its_encoder_lies_elsewhere(
    bundle: fusion.Bundle, folder: Path, tmp_path: Path
) -> None:
    """Folder name and digest tell the encoder; the place is an argument, or beside the bundle's files."""
    bundle.save(tmp_path / "bundle")
    assert str(folder) not in (tmp_path / "bundle" / "metadata.json").read_text()
    with pytest.raises(fusion.BundleMismatch, match=r"folder called 'clinical'.*TEXT_BACKBONE"):
        fusion.Bundle.load(tmp_path / "bundle")
    elsewhere = tmp_path / "other machine" / "clinical"
    shutil.copytree(folder, elsewhere)
    held = fusion.Bundle.load(tmp_path / "bundle", text_backbone=elsewhere)
    assert held.versions == bundle.versions == {Modality.TEXT: text_version(str(folder))}
    assert risk(held) == pytest.approx(risk(bundle), abs=1e-6)
    shutil.copytree(folder, tmp_path / "bundle" / "clinical")
    assert risk(fusion.Bundle.load(tmp_path / "bundle")) == pytest.approx(risk(bundle), abs=1e-6)
    other = save_encoder(tmp_path / "weights" / "clinical", seed=1)
    with pytest.raises(fusion.BundleMismatch, match="text encoder: the bundle declares clinical:"):
        fusion.Bundle.load(tmp_path / "bundle", text_backbone=other)


def test_bundles_that_name_the_whole_path_still_load(
    bundle: fusion.Bundle, folder: Path, tmp_path: Path
) -> None:
    bundle.save(tmp_path)
    told = (tmp_path / "metadata.json").read_text()
    whole = told.replace('"text_backbone": "clinical"', f'"text_backbone": "{folder}"')
    whole = whole.replace('"clinical:', f'"{folder}:')
    assert whole.count(str(folder)) == 3  # config, encoders, declared inputs
    (tmp_path / "metadata.json").write_text(whole)
    assert risk(fusion.Bundle.load(tmp_path)) == pytest.approx(risk(bundle), abs=1e-6)  # where it was trained
    gone = whole.replace(str(folder), "/a/machine/that/is/gone/clinical")
    (tmp_path / "metadata.json").write_text(gone)
    held = fusion.Bundle.load(tmp_path, text_backbone=folder)
    assert risk(held) == pytest.approx(risk(bundle), abs=1e-6)


def test_a_small_machine_needs_no_folder_of_the_encoder(
    bundle: fusion.Bundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusion.edge import main
    from fusion.edge_model import EdgeModel

    bundle.save(tmp_path / "bundle")
    asked = ["--export", str(tmp_path / "bundle"), str(tmp_path / "edge"), "--text-backbone"]
    assert main([*asked, str(tmp_path)]) == 2
    assert main([*asked, str(folder)]) == 0
    monkeypatch.chdir(tmp_path)
    (got,) = EdgeModel(tmp_path / "edge").predict(PATIENT).risks
    assert got.risk == pytest.approx(risk(bundle), abs=1e-4)


def test_a_folder_that_is_called_like_a_package_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "minilm")
    with pytest.raises(fusion.UnknownEncoder, match="rename"):
        fusion.load_text_backbone(str(tmp_path / "minilm"))


def test_a_model_on_it_weighs_sentences_and_names_them(folder: Path) -> None:
    rng = np.random.default_rng(0)
    examples = []
    for number in range(80):
        event = int(rng.random() < 0.5)
        text = f"{'Short of breath' if event else 'Patient is well'}. No fever today."
        inputs = PatientInputs(key=str(number), notes=(NoteInput(f"n{event}", text),))
        examples.append(fusion.Example(inputs, {"icu": event}, str(number)))
    config = simulated.make_config(
        outcomes=simulated.OUTCOMES[:1], modalities=(Modality.TEXT,), text_backbone=str(folder), epochs=2
    )
    bundle = fusion.train(examples, [], config)
    patient = PatientInputs(key="x", notes=(NoteInput("new", "Short of breath. No fever today."),))
    with torch.no_grad():
        encoded = bundle.model.encode(collate([patient], config, Embedder(config))).encoded[Modality.TEXT]
    assert encoded.weights is not None
    assert float(encoded.weights.sum()) == pytest.approx(1, abs=1e-5)
    ill, well = fusion.predict(
        bundle,
        [
            patient,
            dataclasses.replace(patient, notes=(NoteInput("other", "Patient is well. No fever today."),)),
        ],
    )
    assert ill.outcomes[0].risk > well.outcomes[0].risk + 0.2
    told = {d.text: d.points for d in ill.outcomes[0].drivers}
    assert max(told, key=lambda text: abs(told[text])) == "Short of breath."
    whole = ill.outcomes[0].contributions[0].points
    assert sum(told.values()) == pytest.approx(whole, abs=1e-6)
