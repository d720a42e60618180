"""Fixtures shared by the suite: tiny pipelines of the real classes with random weights, the command, a browser."""

from __future__ import annotations

import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not os.path.exists("/dev/nvidia0") and not os.path.exists("/dev/kfd"):
    os.environ.setdefault(
        "TRITON_INTERPRET", "1"
    )  # chosen before anything imports Triton, see kernels/conftest.py

import pytest
import torch


def pytest_itemcollected(item: pytest.Item) -> None:
    """On several processes a file stays together, since its fixtures cost more than its tests; the faults are one world."""
    group = "faults" if item.path.parent.name == "faults" else item.path.relative_to(item.config.rootpath)
    item.add_marker(pytest.mark.xdist_group(str(group)))


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory) -> str:
    """Folder of a random ``ZImagePipeline``: f8, 16 channels, 2 x 2 packing, dim 64; every output is non-trivial."""
    from l2p.landscapes import Scene, caption
    from l2p.teachers import build

    torch.manual_seed(0)
    texts = [caption(Scene.from_seed(seed)) for seed in range(200)]
    tokenizer = build.build_tokenizer(texts, 400)
    text_encoder = build.build_text_encoder(build.TextSizes(32, 2, 2, 64), len(tokenizer))
    vae = build.build_vae(build.VAESizes([8, 8, 16, 16]), sample_size=64)
    vae.register_to_config(scaling_factor=2.0, shift_factor=0.1)
    sizes = build.TransformerSizes(
        dim=64, n_layers=3, n_refiner_layers=1, n_heads=2, axes_dims=[8, 12, 12], axes_lens=[128, 32, 32]
    )
    transformer = build.build_transformer(sizes, latent_channels=16, text_width=32)
    pipeline = build.build_pipeline(vae, transformer, text_encoder, tokenizer)
    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    pipeline.save_pretrained(folder, safe_serialization=True)
    return str(folder)


@pytest.fixture
def l2p(capsys):
    """``l2p("info", folder) -> (exit code, stdout, stderr)``, in this process."""
    from l2p.cli.main import main

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium (Debian: chromium and chromium-driver); the test is skipped where there is none."""
    selenium = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = browser
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1200,900",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = selenium.Chrome(options=options, service=Service(driver))
    started.set_page_load_timeout(300)
    started.set_script_timeout(300)
    yield started
    started.quit()


@pytest.fixture(autouse=True)
def _no_commit_of_an_earlier_hub(monkeypatch):
    """Each test has a Hub of its own, and a process keeps the commit that it read first."""
    monkeypatch.setattr("l2p.hub.client._commits", {})
