"""What was done to a picture, and by what, in its XMP packet.

Three places, each for its reader: properties of our own (`cmudrn:`), the packet's history (`xmpMM:History`)
and IPTC's kind of source. The rest of the packet stays: names, prefixes, order, comments.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime, timezone
from xml.dom import minidom
from xml.parsers.expat import ExpatError

__all__ = ["NAMESPACE", "Provenance", "with_provenance"]

NAMESPACE = "urn:cmudrn:provenance/1.0/"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XMP_MM = "http://ns.adobe.com/xap/1.0/mm/"
EVENT = "http://ns.adobe.com/xap/1.0/sType/ResourceEvent#"
IPTC_EXT = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
# IPTC's word for a correction by algorithm, as a camera's denoising: no scene is generated or composed.
ENHANCED = f"{SOURCE_TYPES}algorithmicallyEnhanced"
# What a photograph may say of itself before. Anything else, as a generated picture's, is the stronger word.
CAPTURED = ("digitalCapture", "computationalCapture", "negativeFilm", "positiveFilm", "print")
XMLNS = "http://www.w3.org/2000/xmlns/"

MOST_PARSED_BYTES = 2**18  # a camera's has 2**13, an editor's 2**17; minidom takes a hundred times as much
EMPTY = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"/></x:xmpmeta>'
    '<?xpacket end="w"?>'
)
# An XML reader makes plain spaces of these where they stand unescaped, and minidom would write them so.
SPACES = {"\t": "\ue009", "\n": "\ue00a", "\r": "\ue00d"}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Who restored a picture, how, and when."""

    weights: str  # their name
    weights_sha256: str
    restored_by: str  # an engine's key, or library and version
    loops: int
    output: str  # fused, rain or snow
    version: str  # of this package
    date: datetime  # with its time zone

    @property
    def properties(self) -> dict[str, str]:
        """By the names that they have in the file."""
        return {
            "Model": "CMUDRN",
            "Weights": self.weights,
            "WeightsSHA256": self.weights_sha256,
            "RestoredBy": self.restored_by,
            "Loops": str(self.loops),
            "Output": self.output,
            "Version": self.version,
            "Date": self.date.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


def with_provenance(packet: bytes | None, provenance: Provenance) -> bytes:
    """The packet with this restoration in it; one of an earlier restoration stays in the history alone.

    What is no XMP goes into a new packet as it is, in base64: cmudrn:UnreadableXMP.
    """
    document = None if packet is None or len(packet) > MOST_PARSED_BYTES else _parsed(packet)
    try:
        return _completed(document, packet, provenance)
    except RecursionError:  # minidom goes down by recursion
        return _completed(None, packet, provenance)


def _completed(document: minidom.Document | None, packet: bytes | None, provenance: Provenance) -> bytes:
    """document: of the packet, changed here; None where there is none to be read."""
    is_unreadable = packet is not None and document is None
    document = document or minidom.parseString(EMPTY.encode())
    (rdf,) = document.getElementsByTagNameNS(RDF, "RDF")[:1]
    _drop_ours(rdf)
    about = next((one.getAttributeNS(RDF, "about") for one in _descriptions(rdf)), "")
    properties = provenance.properties
    if packet is not None and is_unreadable:
        properties["UnreadableXMP"] = base64.b64encode(packet).decode()
    ours = _add(document, rdf, RDF, "rdf:Description")
    _set(ours, RDF, "rdf:about", about)
    for name, value in properties.items():
        _add(document, ours, NAMESPACE, f"cmudrn:{name}", value)
    _add_to_history(document, rdf, ours, properties)
    _say_enhanced(document, rdf, ours)
    return _text(document).encode()


def _parsed(packet: bytes) -> minidom.Document | None:
    """None for what is no XMP. Entities could unpack to gigabytes, and XMP has none."""
    packet = packet.strip(b"\0 \t\r\n")
    if b"<!" in packet.replace(b"<!--", b"").replace(b"<![CDATA[", b""):
        return None
    try:
        document = minidom.parseString(packet)
        return document if document.getElementsByTagNameNS(RDF, "RDF") else None
    except (ExpatError, ValueError, LookupError, RecursionError):
        return None


def _descriptions(rdf: minidom.Element) -> list[minidom.Element]:
    return [
        node
        for node in rdf.childNodes
        if isinstance(node, minidom.Element) and (node.namespaceURI, node.localName) == (RDF, "Description")
    ]


def _drop_ours(rdf: minidom.Element) -> None:
    """The properties of an earlier restoration; each may stand in a packet once."""
    for description in _descriptions(rdf):
        ours = [node for node in description.childNodes if node.namespaceURI == NAMESPACE]
        for node in ours:
            description.removeChild(node)
        for attribute in list(description.attributes.values()):
            if attribute.namespaceURI == NAMESPACE:
                description.removeAttributeNode(attribute)
        if ours and not any(isinstance(node, minidom.Element) for node in description.childNodes):
            rdf.removeChild(description)


def _add_to_history(
    document: minidom.Document, rdf: minidom.Element, ours: minidom.Element, properties: dict[str, str]
) -> None:
    histories = rdf.getElementsByTagNameNS(XMP_MM, "History")
    history = histories[0] if histories else _add(document, ours, XMP_MM, "xmpMM:History")
    lists = history.getElementsByTagNameNS(RDF, "Seq")
    events = lists[0] if lists else _add(document, history, RDF, "rdf:Seq")
    event = _add(document, events, RDF, "rdf:li")
    _set(event, RDF, "rdf:parseType", "Resource")
    how = ", ".join(f"{name} {properties[name]}" for name in ("Model", "RestoredBy", "Loops", "Output"))
    values = {
        "action": "filtered",
        "softwareAgent": f"cmudrn {properties['Version']}",
        "when": properties["Date"],
        "changed": "/content",
        "parameters": f"rain and snow removed: {how}, WeightsSHA256 {properties['WeightsSHA256']}",
    }
    for name, value in values.items():
        _add(document, event, EVENT, f"stEvt:{name}", value)


def _say_enhanced(document: minidom.Document, rdf: minidom.Element, ours: minidom.Element) -> None:
    for description in _descriptions(rdf):
        if description.hasAttributeNS(IPTC_EXT, "DigitalSourceType"):
            told = description.getAttributeNodeNS(IPTC_EXT, "DigitalSourceType")
            if told is not None and _is_captured(told.value):
                told.value = ENHANCED
            return
    for element in rdf.getElementsByTagNameNS(IPTC_EXT, "DigitalSourceType"):
        kind = element.getAttributeNS(RDF, "resource") or "".join(
            node.data for node in element.childNodes if isinstance(node, minidom.Text)
        )
        if _is_captured(kind):
            if element.hasAttributeNS(RDF, "resource"):
                element.removeAttributeNS(RDF, "resource")
            for node in list(element.childNodes):
                element.removeChild(node)
            element.appendChild(document.createTextNode(ENHANCED))
        return
    _add(document, ours, IPTC_EXT, "Iptc4xmpExt:DigitalSourceType", ENHANCED)


def _is_captured(told: str) -> bool:
    return told.strip().rpartition("/")[2] in CAPTURED


def _add(
    document: minidom.Document, parent: minidom.Element, namespace: str, name: str, text: str | None = None
) -> minidom.Element:
    """A new element, which says what its prefix means: another one may have taken that."""
    element = document.createElementNS(namespace, name)
    prefix = name.partition(":")[0]
    element.setAttributeNS(XMLNS, f"xmlns:{prefix}", namespace)
    if text is not None:
        element.appendChild(document.createTextNode(text))
    parent.appendChild(element)
    return element


def _set(element: minidom.Element, namespace: str, name: str, value: str) -> None:
    element.setAttributeNS(XMLNS, f"xmlns:{name.partition(':')[0]}", namespace)
    element.setAttributeNS(namespace, name, value)


def _text(document: minidom.Document) -> str:
    """All nodes but the XML declaration, which XMP has not."""
    for element in document.getElementsByTagName("*"):
        for attribute in element.attributes.values():
            attribute.value = _marked(attribute.value or "", "\t\n\r")  # None: of xmlns=""
        for node in element.childNodes:
            if isinstance(node, minidom.Text) and not isinstance(node, minidom.CDATASection):
                node.data = _marked(node.data, "\r")
    text = "".join(node.toxml() for node in document.childNodes)
    for space, mark in SPACES.items():
        text = text.replace(mark, f"&#{ord(space)};")
    return text


def _marked(text: str, spaces: str) -> str:
    for space in spaces:
        text = text.replace(space, SPACES[space])
    return text
