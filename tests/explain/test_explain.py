"""`fastcnn explain` and `fastcnn.explain`: filters, feature maps, Grad-CAM and single convolutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import correlate
from torch import Tensor, nn

from checkpoints import NETWORKS, write_checkpoint
from fastcnn import explain
from fastcnn.cli.main import main
from fastcnn.config import Config
from fastcnn.errors import BadImageError, UserError
from fastcnn.models.external import constructor
from fastcnn.models.vit import Variant, VisionTransformer


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {task: write_checkpoint(folder / f"{task}.pt", task) for task in NETWORKS}


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    coarse = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((70, 50), Image.Resampling.BICUBIC).save("photo.png")
    return tmp_path / "photo.png"


def trained(network: nn.Module, size: int, classes: int) -> explain.Trained:
    """A network as of a checkpoint, which was not trained."""
    config = Config(img_size=size, val_img_size=size, in_chans=3, train_crop="pad", crop_mode="center")
    names = tuple(f"class {i}" for i in range(classes))
    values = (0.5, 0.5, 0.5)
    return explain.Trained(
        path=Path("x.pt"),
        network=network.eval(),
        config=config,
        mean=values,
        std=values,
        class_names=names,
        multi_label=False,
    )


class Corner(nn.Module):
    """Two maps, of red and of blue; the classes are their means over the upper left and the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 2, 1, bias=False)
        self.maps.weight.data = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]).view(2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        red, blue = self.maps(x).unbind(1)
        return torch.stack([red.mean((1, 2)), blue.mean((1, 2))], 1)


def test_grad_cam_finds_the_place_of_a_class():
    pixels = np.full((16, 16, 3), 128, dtype=np.uint8)
    pixels[:8, :8, 0] = 255  # red above left
    pixels[8:, 8:, 2] = 255  # blue below right
    network = trained(Corner(), 16, 2)
    for name, place, other in (("class 0", (3, 3), (12, 12)), ("1", (12, 12), (3, 3))):
        cam = explain.grad_cam(network, pixels, name, "maps")
        assert (cam.heat[place], cam.heat[other]) == (1, pytest.approx(0, abs=0.02))
        assert cam.layer == "maps"
    assert np.array_equal(cam.image, pixels)


@pytest.mark.parametrize("task", NETWORKS)
def test_the_command_draws_each_task(checkpoints, photo, capsys, task):
    words = [str(checkpoints[task]), str(photo), "--output-dir", "out", "--kernel", "edge"]
    assert main(["explain", *words]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("photo.png: ")
    assert err == "wrote out\n"
    names = {"filters.png", "photo.png.maps.png", "photo.png.cam.png", "photo.png.edge.png"}
    assert {path.name for path in Path("out").iterdir()} == names
    cam = explain.grad_cam(checkpoints[task], photo)
    assert cam.heat.shape == cam.image.shape[:2] == (32, 32)
    assert cam.heat.max() == pytest.approx(1, abs=1e-6)
    assert f"photo.png: {cam.class_name}, by {cam.layer}\n" == out
    maps = explain.feature_maps(checkpoints[task], photo)
    assert maps.maps.ndim == 3
    assert maps.maps.std() > 0
    assert explain.first_filters(checkpoints[task]).weights.shape[1:] == (3, 5, 5)


@pytest.mark.parametrize(
    ("arch", "size", "layer"),
    [
        ("own", 64, "encoder.layers.encoder_layer_1.ln_1"),
        pytest.param("timm/vit_tiny_patch16_224", 224, "blocks.11.norm1", marks=pytest.mark.slow),
        pytest.param("timm/swin_tiny_patch4_window7_224", 224, None, marks=pytest.mark.slow),
    ],
)
def test_grad_cam_of_a_transformer_is_a_map_of_its_patches(photo, arch, size, layer):
    if arch.startswith("timm/"):
        pytest.importorskip("timm")
        network = constructor(arch)(num_classes=4)
    else:
        network = VisionTransformer(Variant(patch=16, width=16, depth=2, heads=2), 4)
        for parameter in network.parameters():  # a head of zeros has no gradients
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    cam = explain.grad_cam(trained(network, size, 4), photo, 2)
    assert layer in (None, cam.layer)
    assert cam.heat.max() == pytest.approx(1, abs=1e-6)
    assert cam.heat.std() > 0


def test_a_layer_can_be_chosen_and_near_names_are_listed(checkpoints, photo, capsys):
    network = explain.open_trained(checkpoints["classification"], "test")
    names = [name for name, module in network.network.named_modules() if isinstance(module, nn.Conv2d)]
    maps = explain.feature_maps(network, photo, names[0])
    assert maps.layer == names[0]
    weights = explain.first_filters(network)
    assert weights.layer == names[0]
    assert len(maps.maps) == len(weights.weights)
    with pytest.raises(UserError, match=rf"--layer {names[0]}x: no layer .*{names[0]}"):
        explain.feature_maps(network, photo, names[0] + "x")
    with pytest.raises(UserError, match="--class red_sta: no such class; use one such as red_star"):
        explain.grad_cam(network, photo, "red_sta")


def test_the_convolution_is_that_of_scipy(photo):
    pixels = np.asarray(Image.open(photo))
    for kernel in ("sharpen", [[1, 2, 3, 4], [0, -1, 0, 2]], [[0.5], [0.25], [0.25]]):
        result = explain.convolve(photo, kernel)
        height, width = result.kernel.shape
        # Of an even side scipy takes the second of the middle places, torch's padding the first.
        origin = (-1 if height % 2 == 0 else 0, -1 if width % 2 == 0 else 0)
        for channel in range(3):
            plane = pixels[..., channel].astype(np.float64)
            expected = correlate(plane, result.kernel.astype(np.float64), mode="nearest", origin=origin)
            assert np.allclose(result.response[..., channel], expected, atol=1e-2)
    flat = explain.convolve(np.full((8, 8, 3), 90, dtype=np.uint8), "edge")
    assert not flat.shown.any()
    assert (explain.convolve(np.full((8, 8, 3), 90, dtype=np.uint8), "blur").shown == 90).all()


def test_a_kernel_needs_no_checkpoint(photo, capsys):
    Path("mine.txt").write_text("0, 1, 0\n1 -4 1\n\n0\t1\t0\n")
    assert main(["explain", str(photo), "--kernel", "mine.txt"]) == 0
    assert capsys.readouterr().err == "wrote explanations\n"
    assert [path.name for path in Path("explanations").iterdir()] == ["photo.png.mine.png"]
    assert explain.read_kernel("mine.txt").tolist() == [[0, 1, 0], [1, -4, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photo.png"], "photo.png: no checkpoint"),
        (["best.pt"], "best.pt: no images beside it"),
        (["best.onnx", "photo.png"], "an exported file does not show its layers"),
        (["photo.png", "--kernel", "egde"], "--kernel egde: No such file or directory; use edge, sharpen"),
        (["photo.png", "--kernel", "ragged.txt"], "--kernel ragged.txt: use 1 to 64 rows of equally many"),
        (["photo.png", "--kernel", "words.txt"], "--kernel words.txt: not rows of numbers"),
        (["photo.png", "--kernel", "inf.txt"], "--kernel inf.txt: a number is infinite or none"),
    ],
)
def test_a_mistake_is_one_line(photo, capsys, words, message):
    for name, text in {"ragged": "1 2\n3", "words": "a b", "inf": "1 inf"}.items():
        Path(f"{name}.txt").write_text(text)
    assert main(["explain", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(Path().glob("explanations*"))


def test_an_undecodable_image_is_named_and_the_rest_drawn(photo, capsys):
    Path("bad.png").write_bytes(b"text")
    assert main(["explain", "bad.png", "photo.png", "--kernel", "blur", "--output-dir", "out"]) == 1
    assert "warning: bad.png: cannot be decoded" in capsys.readouterr().err.replace(str(Path.cwd()) + "/", "")
    assert [path.name for path in Path("out").iterdir()] == ["photo.png.blur.png"]
    with pytest.raises(BadImageError, match=r"bad\.png: cannot be decoded: not an image"):
        explain.convolve("bad.png", "blur")
