# SPDX-License-Identifier: MIT
"""An image's software bill of materials in CycloneDX's JSON, by the OWASP project's own library.

The same image gives the same bytes: the serial number comes from the image's hash and the time is the recipe's.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from attestation.errors import EnvironmentLacks

from .inventory import Component, FileRecord, Inventory, Kind

if TYPE_CHECKING:
    from cyclonedx.model.component import Component as CycloneComponent

NAMESPACE = uuid.UUID("6f3a5c52-29fd-5a43-9f1e-0d5f7a0a1c11")  # of our serial numbers; any constant does


def make_sbom(inventory: Inventory) -> bytes:
    """Return the SBOM; raise EnvironmentLacks where the library is not installed."""
    try:
        from cyclonedx.model.bom import Bom
        from cyclonedx.output import make_outputter
        from cyclonedx.schema import OutputFormat, SchemaVersion
    except ImportError as error:
        raise EnvironmentLacks(
            "this Python has no library for SBOMs: cyclonedx-python-lib", hint="pip install 'veracruz[image]'"
        ) from error
    files: dict[str, list[FileRecord]] = defaultdict(list)
    for file in inventory.files:
        if file.kind == "file":
            files[file.component].append(file)
    bom = Bom(serial_number=uuid.uuid5(NAMESPACE, inventory.image_sha256))
    bom.metadata.timestamp = datetime.fromtimestamp(inventory.epoch, UTC)
    root = _image(inventory)
    bom.metadata.component = root
    made = {}
    for component in inventory.components:
        made[_reference(component)] = item = _component(component, files.get(component.name, []))
        bom.components.add(item)
    bom.register_dependency(root, [made[_reference(c)] for c in inventory.components if c.kind is not Kind.BUNDLED])
    for wheel in (component for component in inventory.components if component.kind is Kind.WHEEL):
        inside = [made[_reference(c)] for c in inventory.components if c.within == wheel.name]
        bom.register_dependency(made[_reference(wheel)], inside)
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string()
    return (json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n").encode()


def _reference(component: Component) -> str:
    parts = (component.kind.value, component.within, component.name, component.version)
    return ":".join(part for part in parts if part)


def _image(inventory: Inventory) -> CycloneComponent:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component as Cyclone
    from cyclonedx.model.component import ComponentType

    pcrs = inventory.measurements
    table: dict[str, Any] = {"PCR0": pcrs.pcr0, "PCR1": pcrs.pcr1, "PCR2": pcrs.pcr2}
    return Cyclone(
        name=inventory.image, type=ComponentType.FIRMWARE, version=inventory.tool, bom_ref="image",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=inventory.image_sha256)],
        properties=[Property(name=f"veracruz:{name}", value=value.hex()) for name, value in table.items()],
    )  # fmt: skip


def _component(component: Component, files: list[FileRecord]) -> CycloneComponent:
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component as Cyclone
    from cyclonedx.model.component import ComponentScope, ComponentType
    from cyclonedx.model.license import DisjunctiveLicense
    from packageurl import PackageURL

    factory = LicenseFactory()
    names = component.licences
    licences = [factory.make_from_string(names[0])] if len(names) == 1 else [
        factory.make_with_id(name) if _is_spdx(name) else DisjunctiveLicense(name=name) for name in names
    ]  # fmt: skip
    facts = {
        "kind": component.kind.value, "file": component.filename, "licence-text": component.licence_text,
        "source": f"{component.source} {component.source_version}".strip(),
        "security-suite": "yes" if component.security else "",
    }  # fmt: skip
    types = {Kind.KERNEL: ComponentType.OPERATING_SYSTEM, Kind.OWN: ComponentType.APPLICATION}
    return Cyclone(
        name=component.name, version=component.version, bom_ref=_reference(component),
        type=types.get(component.kind, ComponentType.LIBRARY),
        scope=ComponentScope.EXCLUDED if component.kind is Kind.TOOL else ComponentScope.REQUIRED,
        purl=PackageURL.from_string(component.purl) if component.purl else None,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=component.sha256)] if component.sha256 else [],
        licenses=licences,
        properties=[Property(name=f"veracruz:{key}", value=value) for key, value in facts.items() if value],
        components=[
            Cyclone(
                name=f"/{file.path}", type=ComponentType.FILE, bom_ref=f"file:{file.ramdisk}:{file.path}",
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=file.sha256)],
                properties=[Property(name="veracruz:source", value=file.source)] if file.source else [],
            )
            for file in files
        ],
    )  # fmt: skip


def _is_spdx(name: str) -> bool:
    from cyclonedx.spdx import is_supported_id

    return is_supported_id(name)
