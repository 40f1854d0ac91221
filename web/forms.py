"""The forms of the screens: what a person typed, each mistake beside its field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from django import forms

from cds.errors import Invalid
from cds.hooks import key_sets
from cds.hooks import registering as clients
from cds.hooks.models import HookClient
from cds.launch import registering as servers
from cds.launch.models import SmartServer
from cds.patients.models import Source


@dataclass(frozen=True, slots=True)
class Change:
    """A line of what is about to be kept: as it is now ("" for nothing), and as it would be."""

    label: str
    before: str
    after: str

    @property
    def is_change(self) -> bool:
        return self.before != self.after


def whole_number(said: str) -> int | None:
    """What an address or a form says as a number, 0 or more, of 18 digits at most; None for anything else.

    `str.isdigit` alone is also true of "²", and of more digits than `int` takes.
    """
    return int(said) if said.isascii() and said.isdigit() and len(said) < 19 else None


class EhrForm(forms.Form):
    """What both kinds of EHRs have: a name, an issuer that stays as it is, a source.

    held  what is registered; None for a new one
    """

    name = forms.CharField(label="Name", max_length=120, help_text="What people here call it.")
    issuer = forms.CharField(label="Issuer", max_length=300)
    source = forms.SlugField(
        label="Source",
        max_length=80,
        help_text="The slug under which its FHIR, DICOM and calls come in: all speak of the same people.",
        widget=forms.TextInput(attrs={"list": "sources", "autocomplete": "off"}),
    )
    multi: tuple[str, ...] = ()  # names of fields with one address a line
    held: Any = None
    registering: Any  # the module that keeps it

    def __init__(self, data: Mapping[str, Any] | None = None, *, held: Any = None) -> None:
        self.held = held
        super().__init__(data, initial=self.values_of(held) if held is not None else None)
        if held is not None:
            self.fields["issuer"].disabled = True
        for field in self.fields.values():
            if isinstance(field.widget, forms.Textarea):
                field.widget.attrs.update(rows=3, spellcheck="false")
            field.widget.attrs.pop("maxlength", None)  # what is too long is told, not cut off

    def values_of(self, held: Any) -> dict[str, Any]:
        """What is registered, as the form shows it."""
        kept = {name: getattr(held, name) for name in self.base_fields if hasattr(held, name)}
        return {**kept, "source": held.source.slug, **{name: "\n".join(kept[name]) for name in self.multi}}

    def clean(self) -> dict[str, Any]:
        """The first mistake gets the focus."""
        found = super().clean() or self.cleaned_data
        self._focus()
        return found

    def add_error(self, field: str | None, error: Any) -> None:
        """As Django's; and the first mistake gets the focus."""
        super().add_error(field, error)
        self._focus()

    def changes(self) -> list[Change]:
        """What is kept now beside what would be."""
        before = self.values_of(self.held) if self.held is not None else {}
        return [
            Change(str(field.label), _text(before.get(name)), _text(self.cleaned_data[name]))
            for name, field in self.fields.items()
        ]

    def warning(self) -> str:
        """What to think of before it is confirmed: that another EHR of the kind has the same source."""
        source = self.cleaned_data["source"]
        return clients.shared(source, self.registering.beside(source, self.cleaned_data["issuer"]))

    def sources(self) -> list[str]:
        """Slugs to choose from."""
        return list(Source.objects.order_by("slug").values_list("slug", flat=True))

    def checked(self, name: str, check: Callable[[str], str]) -> str:
        """A field by a rule of the clinic."""
        return _checked(str(self.cleaned_data[name]), check)

    def lines(self, name: str, check: Callable[[str], str]) -> list[str]:
        """A field of one address a line, each by a rule of the clinic."""
        return [_checked(one, check) for one in self.cleaned_data[name].split()]

    def _focus(self) -> None:
        wrong = next((name for name in self.fields if name in self.errors), None)
        for name, field in self.fields.items():
            field.widget.attrs.pop("autofocus", None)
            if name == wrong:
                field.widget.attrs["autofocus"] = True


class ClientForm(EhrForm):
    """An EHR that may call CDS Hooks."""

    jwks_url = forms.CharField(
        label="JWKS URL",
        required=False,
        help_text="Where its public keys are read from: they can then rotate without anybody here.",
    )
    jwks = forms.CharField(
        label="Public key set",
        required=False,
        widget=forms.Textarea,
        help_text='Instead of a JWKS URL: {"keys": [...]} with EC P-384 or RSA keys, public parts only.',
    )
    fhir_servers = forms.CharField(
        label="FHIR servers",
        required=False,
        widget=forms.Textarea,
        help_text="Base addresses, one a line. A partial prefetch is completed from these and no others.",
    )
    origins = forms.CharField(
        label="Web origins",
        required=False,
        widget=forms.Textarea,
        help_text="https://host, one a line: from where its browsers may call (CORS).",
    )
    tenant = forms.CharField(
        label="Tenant",
        required=False,
        max_length=120,
        help_text="The tenant its tokens must carry; empty where it has none. Each is registered by itself.",
    )
    registering = clients
    multi = ("fhir_servers", "origins")
    field_order = ("name", "issuer", "source", "jwks_url", "jwks", "fhir_servers", "origins", "tenant")

    def __init__(self, data: Mapping[str, Any] | None = None, *, held: HookClient | None = None) -> None:
        super().__init__(data, held=held)
        self.fields["issuer"].help_text = "The iss of its tokens, exactly as they say it."
        self.fields["jwks"].widget.attrs.update(rows=6, **{"class": "mono"})
        self.fields["tenant"].disabled = held is not None  # another tenant is another client

    def values_of(self, held: HookClient) -> dict[str, Any]:
        keys = "" if held.jwks_url else orjson.dumps(held.jwks, option=orjson.OPT_INDENT_2).decode()
        return {**super().values_of(held), "jwks": keys}

    def clean_name(self) -> str:
        return self.checked("name", clients.check_name)

    def clean_issuer(self) -> str:
        return self.checked("issuer", clients.check_issuer)

    def clean_tenant(self) -> str:
        return self.checked("tenant", clients.check_tenant)

    def clean_jwks_url(self) -> str:
        return self.checked("jwks_url", key_sets.check_url) if self.cleaned_data["jwks_url"] else ""

    def clean_jwks(self) -> str:
        text = str(self.cleaned_data["jwks"]).strip()
        _checked(text, lambda said: str(key_sets.check_keys(_json(said)))) if text else None
        return text

    def clean_fhir_servers(self) -> list[str]:
        return self.lines("fhir_servers", clients.check_server)

    def clean_origins(self) -> list[str]:
        return self.lines("origins", clients.check_origin)

    def clean(self) -> dict[str, Any]:
        given = [name for name in ("jwks_url", "jwks") if self.cleaned_data.get(name)]
        if len(given) != 1 and not {"jwks_url", "jwks"} & self.errors.keys():
            self.add_error("jwks_url", "Give either a JWKS URL or a public key set: one of the two.")
        one = {name: self.cleaned_data.get(name) for name in ("issuer", "tenant")}
        if self.held is None and HookClient.objects.filter(**one).exists():
            self.add_error(
                "issuer", "An EHR with this issuer and tenant is registered already: edit that one."
            )
        return super().clean()

    def key_set(self) -> dict[str, Any] | None:
        """What was pasted; None where keys are read from an address."""
        text = self.cleaned_data["jwks"]
        return _json(text) if text else None

    def changes(self) -> list[Change]:
        """As of every form; of keys, their names. An address that cannot be read is a field's mistake."""
        pasted, url = self.key_set(), self.cleaned_data["jwks_url"]
        lines = [one for one in super().changes() if one.label != self.fields["jwks"].label]
        if pasted is not None:
            found = pasted
        elif self.held is not None and self.held.jwks_url == url:
            found = self.held.jwks
        else:
            found = _read_at(self, url)
        before = self.held.jwks if self.held is not None else {}
        place = next(i for i, one in enumerate(lines) if one.label == self.fields["jwks_url"].label)
        return [*lines[: place + 1], Change("Keys", _kids(before), _kids(found)), *lines[place + 1 :]]


class ServerForm(EhrForm):
    """An EHR that may launch us (SMART App Launch)."""

    client_id = forms.CharField(label="Client id", max_length=200, help_text="What the EHR calls us.")
    is_confidential = forms.BooleanField(
        label="Confidential: sign in with our key (private_key_jwt)",
        required=False,
        help_text="Otherwise we are a public client, by PKCE alone.",
    )
    has_own_redirect = forms.BooleanField(
        label="A redirect URI of its own",
        required=False,
        help_text="Told on its page, to be registered at the EHR. Where several public EHRs are registered "
        "here, none of them can then come by another's codes.",
    )
    origins = forms.CharField(
        label="Further origins of its sign-in",
        required=False,
        widget=forms.Textarea,
        help_text="https://host, one a line, where its sign-in lies elsewhere than its FHIR address.",
    )
    embedders = forms.CharField(
        label="Web origins of its own pages",
        required=False,
        widget=forms.Textarea,
        help_text="https://host, one a line: these may show us in a frame.",
    )
    registering = servers
    multi = ("origins", "embedders")
    field_order = (
        "name", "issuer", "source", "client_id", "is_confidential", "has_own_redirect", "origins",
        "embedders",
    )  # fmt: skip

    def __init__(self, data: Mapping[str, Any] | None = None, *, held: SmartServer | None = None) -> None:
        super().__init__(data, held=held)
        self.fields["issuer"].label = "FHIR base address"
        self.fields["issuer"].help_text = "To the letter as its launches name it (iss), its last slash too."

    def values_of(self, held: Any) -> dict[str, Any]:
        return {**super().values_of(held), "issuer": held.address}

    def clean_name(self) -> str:
        return self.checked("name", clients.check_name)

    def clean_issuer(self) -> str:
        issuer = self.checked("issuer", servers.check_issuer)
        if self.held is None and SmartServer.objects.filter(issuer=issuer.removesuffix("/")).exists():
            raise forms.ValidationError("An EHR with this address is registered already: edit that one.")
        return issuer

    def clean_client_id(self) -> str:
        return self.checked("client_id", servers.check_client_id)

    def clean_origins(self) -> list[str]:
        return self.lines("origins", servers.check_origin)

    def clean_embedders(self) -> list[str]:
        return self.lines("embedders", servers.check_embedder)


def _checked(text: str, check: Callable[[str], str]) -> str:
    try:
        return check(text)
    except Invalid as error:
        said = str(error)
        raise forms.ValidationError(f"{said[:1].upper()}{said[1:]}.") from error


def _read_at(form: ClientForm, url: str) -> dict[str, Any]:
    try:
        return key_sets.read(url)
    except Invalid as error:
        form.add_error("jwks_url", f"{str(error)[:1].upper()}{str(error)[1:]}.")
        return {}


def _kids(jwks: Mapping[str, Any]) -> str:
    return "\n".join(key["kid"] for key in jwks.get("keys", []))


def _json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Invalid(f"not JSON (position {error.pos})") from error


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "\n".join(value) if isinstance(value, list) else str(value or "")
