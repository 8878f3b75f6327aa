"""What was done goes into XMP, and nothing that was there gets lost."""

from __future__ import annotations

import base64
from datetime import datetime, timedelta, timezone
from xml.etree import ElementTree

import pytest
from rich_pictures import XMP

from cmudrn.images.provenance import ENHANCED, NAMESPACE, Provenance, with_provenance

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
MM = "{http://ns.adobe.com/xap/1.0/mm/}"
KIND = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
OURS = Provenance(
    weights="default",
    weights_sha256="ab" * 32,
    restored_by="t3-500x500-b8-fp16-uint8-trt11.4-sm90",
    loops=3,
    output="fused",
    version="0.1.0",
    date=datetime(2024, 2, 29, 13, 34, 56, tzinfo=timezone(timedelta(hours=1))),
)


def packet(inside: str, attributes: str = "") -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="uuid:1" {attributes}>{inside}</rdf:Description></rdf:RDF></x:xmpmeta>'
    ).encode()


def told(content: bytes) -> dict[str, str | None]:
    """The properties of our own."""
    nodes = ElementTree.fromstring(content).iter()
    return {
        node.tag.partition("}")[2]: node.text for node in nodes if node.tag.startswith(f"{{{NAMESPACE}}}")
    }


def properties(content: bytes) -> list[str]:
    """Every property of every description, by any other XML reader; each may stand there once."""
    rdf = ElementTree.fromstring(content).find(f".//{RDF}RDF") or ElementTree.fromstring(content).find(
        f"{RDF}RDF"
    )
    assert rdf is not None
    found: list[str] = []
    for description in rdf.findall(f"{RDF}Description"):
        found += [name for name in description.attrib if not name.startswith(RDF)]
        found += [node.tag for node in description]
    return found


def test_a_picture_without_xmp_gets_a_packet_of_its_own() -> None:
    content = with_provenance(None, OURS)
    assert told(content) == {
        "Model": "CMUDRN",
        "Weights": "default",
        "WeightsSHA256": "ab" * 32,
        "RestoredBy": "t3-500x500-b8-fp16-uint8-trt11.4-sm90",
        "Loops": "3",
        "Output": "fused",
        "Version": "0.1.0",
        "Date": "2024-02-29T12:34:56Z",  # universal time, whatever zone it was given in
    }
    assert content.startswith(b"<?xpacket begin=")
    assert content.endswith(b'<?xpacket end="w"?>')
    assert ENHANCED.encode() in content


def test_what_was_there_stays_as_it_was() -> None:
    content = with_provenance(XMP, OURS)
    for kept in (
        b'xmp:Rating="4"',
        b'"one&#10;two"',
        b"<!-- a comment -->",
        "Regen ü".encode(),
        b"<?xpacket begin=",
    ):
        assert kept in content
    before = properties(XMP)
    assert [name for name in properties(content) if name in before] == before


def test_a_second_restoration_replaces_the_properties_and_adds_to_the_history() -> None:
    from dataclasses import replace

    once = with_provenance(XMP, OURS)
    twice = with_provenance(once, replace(OURS, loops=1))
    names = properties(twice)
    assert len(names) == len(set(names)) == len(properties(once))
    assert told(twice)["Loops"] == "1"
    assert twice.count(b"softwareAgent") == 2 * once.count(b"softwareAgent")
    assert b"Loops 3" in twice


def test_a_history_that_is_there_goes_on() -> None:
    events = '<rdf:li stEvt:action="saved" xmlns:stEvt="http://ns.adobe.com/xap/1.0/sType/ResourceEvent#"/>'
    source = packet(f'<m:History xmlns:m="{MM[1:-1]}"><rdf:Seq>{events}</rdf:Seq></m:History>')
    content = with_provenance(source, OURS)
    history = ElementTree.fromstring(content).findall(f".//{MM}History")
    assert len(history) == 1
    assert len(history[0].findall(f"{RDF}Seq/{RDF}li")) == 2
    assert b'stEvt:action="saved"' in content
    assert properties(content).count(f"{MM}History") == 1


@pytest.mark.parametrize(("kind", "stays"), [("digitalCapture", False), ("trainedAlgorithmicMedia", True)])
@pytest.mark.parametrize("form", ["attribute", "text", "resource"])
def test_a_captured_picture_becomes_an_enhanced_one_and_a_generated_one_does_not(
    kind: str, stays: bool, form: str
) -> None:
    uri = f"http://cv.iptc.org/newscodes/digitalsourcetype/{kind}"
    space = f'xmlns:i="{KIND[1:].partition("}")[0]}"'
    source = {
        "attribute": packet("", f'{space} i:DigitalSourceType="{uri}"'),
        "text": packet(f"<i:DigitalSourceType {space}>{uri}</i:DigitalSourceType>"),
        "resource": packet(f'<i:DigitalSourceType {space} rdf:resource="{uri}"/>'),
    }[form]
    content = with_provenance(source, OURS)
    assert properties(content).count(KIND) == 1
    assert (uri.encode() in content) is stays
    assert (ENHANCED.encode() in content) is not stays


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"no XML at all",
        XMP[:-40],
        b"<a/>",
        b'<!DOCTYPE a [<!ENTITY b "c">]>' + packet("&b;"),
        b"\xff\xfe<\0x\0",
        b'<?xml version="1.0" encoding="nonsense"?>' + packet(""),
    ],
)
def test_what_is_no_xmp_is_kept_beside(broken: bytes) -> None:
    content = with_provenance(broken, OURS)
    assert base64.b64decode(told(content)["UnreadableXMP"] or "") == broken
    assert told(content)["Loops"] == "3"


def test_padding_at_the_end_does_not_matter() -> None:
    assert "UnreadableXMP" not in told(with_provenance(XMP + b" \n\0\0", OURS))


def test_an_empty_namespace_is_no_harm() -> None:
    assert b"WeightsSHA256" in with_provenance(packet('<a xmlns=""/>'), OURS)


@pytest.mark.parametrize("inside", ["<a>" * 5000 + "</a>" * 5000, "<a/>" * 250_000], ids=["deep", "long"])
def test_a_packet_that_would_cost_too_much_to_read_is_kept_as_it_is(inside: str) -> None:
    given = packet(inside)
    made = with_provenance(given, OURS)
    assert base64.b64encode(given) in made
    assert told(made)["WeightsSHA256"] == OURS.weights_sha256
