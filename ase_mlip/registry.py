"""Published foundation models by name: where they are, under which licence, and what to cite.

Addresses and licences are those that the publishers give (README of ACEsuit/mace-foundations, ACEsuit/mace-off,
atomicarchitects/nequix and instadeepai/mlip).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

MIT = "MIT"
ASL = "Academic Software License, no commercial use (https://github.com/gabor1/ASL)"
MACE_MP = "Batatia et al., arXiv:2401.00096"
MACE_OFF = "Kovács et al., arXiv:2312.15211"
MACE_MH = "Batatia et al., arXiv:2510.25380"
NEQUIX = "Koker, Kotak, Smidt, arXiv:2508.16067"
NEQUIX_PFT = "Koker et al., arXiv:2601.07742"
MLIP = "Batatia et al., arXiv:2206.07697; Brunken et al., arXiv:2605.22698"


@dataclass(frozen=True)
class PublishedModel:
    """A model that its authors publish at a fixed address.

    Attributes:
        name: what the user writes.
        url: the published address; its last part names the file in the cache.
        kind: format of the file.
        licence: of the weights, as their publisher states it.
        citation: what the publisher asks to cite.
        note: elements, training data, level of theory.
        sha256: of the file: the value that other projects pin (see the table), or for nequix that of the file at the
            commit in the address, computed by us; None where nobody states one.
        size: bytes, where known.

    Example:
        >>> PUBLISHED["mace-mpa-0-medium"].licence
        'MIT'
    """

    name: str
    url: str
    kind: Literal["mace-torch", "mlip", "nequix"]
    licence: str
    citation: str
    note: str
    sha256: str | None = None
    size: int | None = None

    @property
    def file_name(self) -> str:
        """Name of the file in the cache."""
        return self.url.rsplit("/", 1)[-1]


def _mace(
    name: str, place: str, licence: str, citation: str, note: str, sha256: str, size: int | None
) -> PublishedModel:
    """A model of a GitHub release in ACEsuit/mace-foundations."""
    url = f"https://github.com/ACEsuit/mace-foundations/releases/download/{place}"
    return PublishedModel(name, url, "mace-torch", licence, citation, note, sha256, size)


def _off(name: str, place: str, note: str, sha256: str, size: int | None = None) -> PublishedModel:
    """A model in the tagged repository ACEsuit/mace-off."""
    url = f"https://raw.githubusercontent.com/ACEsuit/mace-off/v0.2/{place}"
    return PublishedModel(name, url, "mace-torch", ASL, MACE_OFF, note, sha256, size)


def _nequix(name: str, commit: str, citation: str, note: str, sha256: str, size: int) -> PublishedModel:
    """A model in atomicarchitects/nequix, at the commit that nequix itself downloads from."""
    url = f"https://github.com/atomicarchitects/nequix/raw/{commit}/models/{name}.nqx"
    return PublishedModel(name, url, "nequix", MIT, citation, note, sha256, size)


def _mlip(name: str, repository: str, file_name: str, note: str) -> PublishedModel:
    """A model of InstaDeep's on Hugging Face."""
    card = f"https://huggingface.co/InstaDeepAI/{repository}"
    licence = f"InstaDeep's own, not its library's; its sister models are non-commercial; read the model card, {card}"
    return PublishedModel(name, f"{card}/resolve/main/{file_name}", "mlip", licence, MLIP, note)


_NEQUIX_MP = "7c2854de8e754b1a60274c7d9d2e014989ed632e"
_NEQUIX_OAM = "9c852a9c4cce69ae5e75bc5a2cf670be21ff8c28"
_MPTRJ = "89 elements, MPtrj, PBE+U"
_OMAT = "89 elements, OMat24, PBE+U (VASP 54)"
_OFF23 = "10 elements, SPICE, wB97M+D3; organic molecules"
_MH = "89 elements; heads for OMAT, OMOL, OC20 and MATPES (PBE, r2SCAN, wB97M-VV10)"

# Where the hashes are stated: MACE-MP-0b3, MPA, OMAT, MATPES, MH and OFF23 in bonan-group/symmetrix-xl
# (benchmarks/foundation_model_support_manifest.json), OFF23 and OFF24 in deepmodeling/deepmd-gnn (mace_off_cli.py);
# MP-0a by projects that record the file they used (small and medium several, large one).
_MODELS = (
    _mace(
        "mace-mp-0a-small", "mace_mp_0/2023-12-10-mace-128-L0_energy_epoch-249.model", MIT, MACE_MP, _MPTRJ,
        "2ddb079cee0e131eaaf6912ba581b394551ead283e95c99cfe78c605d10b5736", 32_581_838,
    ),
    _mace(
        "mace-mp-0a-medium", "mace_mp_0/2023-12-03-mace-128-L1_epoch-199.model", MIT, MACE_MP, _MPTRJ,
        "01bfe22100139f424713cf921144e5509cbe353d67aa9fa1be9c6e1e0ed35845", 44_422_970,
    ),
    _mace(
        "mace-mp-0a-large", "mace_mp_0/2024-01-07-mace-128-L2_epoch-199.model", MIT, MACE_MP,
        f"{_MPTRJ}; in the publisher's table; mace_mp('large') is another file, MACE_MPtrj_2022.9.model",
        "514bd2f1938653c37929f7c275a489378f03a7e3ffb27aa2ae0ddce8d0c859c8", 63_509_066,
    ),
    _mace(
        "mace-mp-0b3-medium", "mace_mp_0b3/mace-mp-0b3-medium.model", MIT, MACE_MP,
        f"{_MPTRJ}; steadier under pressure and better phonons than 0a",
        "2f2be696351ac9e94fbe01cdfb6f017679acdbd2db7645209ef55fec9826b012", 79_472_952,
    ),
    _mace(
        "mace-mpa-0-medium", "mace_mpa_0/mace-mpa-0-medium.model", MIT, MACE_MP, "89 elements, MPtrj and sAlex, PBE+U",
        "75428afe3a1d7d8062e19bcaabd5c433623cabf308242ec9fb493e38604fb638", 79_462_305,
    ),
    _mace(
        "mace-omat-0-small", "mace_omat_0/mace-omat-0-small.model", ASL, MACE_MP, _OMAT,
        "0abfde07862cf1e93b8b4d03cb702f29ce9c344ff2fc4de2ec0d7166d6c113a5", 67_630_500,
    ),
    _mace(
        "mace-omat-0-medium", "mace_omat_0/mace-omat-0-medium.model", ASL, MACE_MP, _OMAT,
        "d4b14be9afa294eebdbe31a0280b26a0fa29715771e978cbfd3ca24e0d90307a", None,
    ),
    _mace(
        "mace-matpes-pbe-0", "mace_matpes_0/MACE-matpes-pbe-omat-ft.model", ASL, MACE_MP,
        "89 elements, MATPES, PBE without U",
        "e618ad582b84239905b9c3b77ce6e9ce111b0ecd1533223a1a6aac7a696b8aa0", 79_471_284,
    ),
    _mace(
        "mace-matpes-r2scan-0", "mace_matpes_0/MACE-matpes-r2scan-omat-ft.model", ASL, MACE_MP,
        "89 elements, MATPES, r2SCAN",
        "8f147ecffa1d06a696e5648b13b81abda9c96fda9d0fb3faba3cd3fb27d9bba9", 79_470_738,
    ),
    _mace(
        "mace-mh-0", "mace_mh_1/mace-mh-0.model", ASL, MACE_MH, _MH,
        "d62ff8f293664e6556cfa49364b28ee72a70cf1e6150f3c111a578397fed609d", None,
    ),
    _mace(
        "mace-mh-1", "mace_mh_1/mace-mh-1.model", ASL, MACE_MH, _MH,
        "a522eb7f59c7879963d41586528f4980baf33e086c94aa92e3eafdeccad3be47", 59_208_139,
    ),
    _off(
        "mace-off23-small", "mace_off23/MACE-OFF23_small.model", _OFF23,
        "165cce4cfec5a34b9c64d4ebf95de15d71106bb584b7291c8470f0749977c46f",
    ),
    _off(
        "mace-off23-medium", "mace_off23/MACE-OFF23_medium.model", _OFF23,
        "4842c52ad210d6e1f84d6cf1ffa70fae25a7e0d755ed55cf223f43913f587db7",
    ),
    _off(
        "mace-off23-large", "mace_off23/MACE-OFF23_large.model", _OFF23,
        "a29e397dbf3e7a24ac50a9b0dfc919bd5a62efa346f5895a6237b0950c1d76f4",
    ),
    _off(
        "mace-off24-medium", "mace_off24/MACE-OFF24_medium.model", "organic molecules",
        "e5ccf5837f685899811a68754e7c994393bfd1a81720393b03c643b46c70bc69", 18_375_569,
    ),
    _nequix(
        "nequix-mp-1", _NEQUIX_MP, NEQUIX, _MPTRJ,
        "1647af8e627e1afa11e2bfadeab0797326513a521afd7dd01606a96f56783eee", 2_842_366,
    ),
    _nequix(
        "nequix-mp-1-pft", _NEQUIX_MP, NEQUIX_PFT, f"{_MPTRJ}; tuned on the MDR phonons",
        "a88aeaed71fd447572dc57af21d469207d7737b85a6dbb66f8c38156f175c5f1", 2_842_840,
    ),
    _nequix(
        "nequix-omat-1", _NEQUIX_OAM, NEQUIX_PFT, _OMAT,
        "2d0802ae7f5915cb488c44d25649d98404a103697e6500abb40f515e003a46a6", 2_841_752,
    ),
    _nequix(
        "nequix-oam-1", _NEQUIX_OAM, NEQUIX_PFT, "89 elements, OMat24, sAlex and MPtrj, PBE+U",
        "6a43475eaeb32a7a049f36c1306d78aa1e7a17e8af37aeda7901c8fec0ca845c", 2_869_928,
    ),
    _nequix(
        "nequix-oam-1-pft", _NEQUIX_OAM, NEQUIX_PFT, "nequix-oam-1 tuned on the MDR phonons",
        "4ce693d68886512aab50c84ea2400efd68163e11155f7c7babe98e695177e809", 2_842_066,
    ),
    _mlip("mlip-mace-organics-01", "mace-organics", "mace_organics_01.zip", "SPICE2; organic molecules"),
    _mlip("mlip-mace-organics-02", "mlip_models_organics_v2", "mace_organics_02.zip", "SPICE2 subset of OMol25"),
)  # fmt: skip

PUBLISHED: dict[str, PublishedModel] = {model.name: model for model in _MODELS}


def unknown_name(name: str, shipped: Iterable[str] = ()) -> str:
    """What to tell someone who asked for a model that is neither shipped nor published: the nearest names first."""
    shipped = list(shipped)
    names, wanted = [*shipped, *PUBLISHED], name.lower()
    near = [known for known in names if known.startswith(wanted)] or difflib.get_close_matches(wanted, names)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    with_package = f" Shipped with the package: {', '.join(shipped)}." if shipped else ""
    published = f" Published, downloaded on first use: {', '.join(PUBLISHED)}."
    return f"{name!r} is neither a file nor the name of a model{hint}{with_package}{published}"
