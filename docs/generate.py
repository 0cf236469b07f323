"""Pages that mkdocs builds from the code: home, commands, OpenAPI, metrics, model cards; a hook of `mkdocs.yml`."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
ORIGIN = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages of the site that lie outside of docs/, where a reader of the repository looks for them."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    schema = openapi()
    pages = {page: from_root((ROOT / source).read_text()) for page, source in ORIGIN.items()}
    pages["index.md"] = "---\nhide: [navigation, toc]\n---\n\n" + pages["index.md"]
    pages |= {
        "reference/bpr.md": commands("bpr_service.cli", "bpr"),
        "reference/bpr-train.md": commands("refiner_training.cli", "bpr-train"),
        "reference/openapi.md": openapi_page(schema),
        "reference/openapi.json": json.dumps(schema, indent=1),
        "models.md": model_cards(),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Fill in the tables that a page asks for, and link what lies in the repository but not in the site."""
    if page.file.src_uri == "operations/metrics.md":
        markdown = markdown.replace("<!-- metrics -->", metrics_table()).replace("<!-- alerts -->", alerts_table())
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings say ``:class:`Name``` and ``::`` before a literal block; the site shows neither."""
    html = re.sub(r":(?:class|func|meth|mod|data|attr|exc):(?=<code>)", "", html)
    return re.sub(r"<p>::</p>|(?<=:):(?=</p>)", "", html)


def from_root(text: str) -> str:
    """Markdown of the repository's root, its links as they are in docs/; what the site has not becomes plain text."""

    def link(match: re.Match[str]) -> str:
        label, target = match.groups()
        path, _, anchor = target.partition("#")
        for page, source in ORIGIN.items():
            if path == source:
                return f"[{label}]({page}{'#' + anchor if anchor else ''})"
        if target.startswith("docs/"):
            return f"[{label}]({target.removeprefix('docs/')})"
        return match.group() if "://" in target or not path else f"`{path}`"

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", link, text)


# ---------------------------------------------------------------- commands


def commands(module: str, name: str) -> str:
    """Every command of a typer application, with its arguments and options."""
    from importlib import import_module

    import typer

    root = typer.main.get_command(import_module(module).app)
    out = [f"# {name}", "", root.get_short_help_str(300), "", *_group(root, name, level=2)]
    return "\n".join(out) + "\n"


def _group(command: Any, path: str, level: int) -> list[str]:
    out: list[str] = []
    for name, sub in command.commands.items():
        full = f"{path} {name}"
        out += [f"{'#' * level} `{full}`", "", (sub.help or "").strip().replace("\n", "  \n"), ""]
        if hasattr(sub, "commands"):
            out += _group(sub, full, level + 1)
        else:
            out += _parameters(sub, full)
    return out


def _parameters(command: Any, path: str) -> list[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = " ".join([path, *(_usage(a) for a in arguments), *(f"{o.opts[-1]} ..." for o in options if o.required)])
    out = ["```text", f"{usage} [options]", "```", ""]
    rows = [(f"`{_usage(a)}`", getattr(a, "help", None) or "", "") for a in arguments]
    rows += [(", ".join(f"`{o}`" for o in [*o.opts, *o.secondary_opts]), o.help or "", _default(o)) for o in options]
    if rows:
        out += ["| | means | default |", "|---|---|---|"]
        out += [f"| {a} | {_cell(b)} | {_cell(c)} |" for a, b, c in rows] + [""]
    return out


def _usage(argument: Any) -> str:
    name = (argument.metavar or argument.name or "").upper()
    return f"{name}..." if argument.nargs == -1 else name


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if option.default in (None, (), []) or callable(option.default):
        return ""
    return f"`{str(option.default).lower() if isinstance(option.default, bool) else option.default}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# ---------------------------------------------------------------- OpenAPI


def openapi() -> dict[str, Any]:
    """The document that `bpr serve --jobs` answers at /openapi.json."""
    os.environ.setdefault("BPR_DUMMY", "1")
    from bpr_service.runtime.dummy import DummyModels
    from bpr_service.runtime.engine import Engine
    from bpr_service.server.app import create_app
    from bpr_service.server.http.jobs import create_router
    from bpr_service.server.settings import ServerSettings

    settings = ServerSettings(dummy=True)
    app = create_app(Engine(DummyModels(), settings), settings, job_router=create_router())
    return app.openapi()


def openapi_page(schema: dict[str, Any]) -> str:
    """Routes by tag, then the schemas that they name."""
    out = [
        "# OpenAPI",
        "",
        f"Version {schema['info']['version']}. Generated from the application; the document itself is "
        "[openapi.json](openapi.json), and a running server answers it at `/openapi.json`. "
        "[HTTP by example](../api.md) shows the routes at work.",
        "",
    ]
    by_tag: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            by_tag.setdefault((route.get("tags") or ["other"])[0], []).append((method, path, route))
    for tag, routes in by_tag.items():
        out += [f"## {tag.capitalize()}", ""]
        for method, path, route in routes:
            out += _route(method, path, route)
    out += ["## Schemas", ""]
    for name, model in sorted(schema["components"]["schemas"].items()):
        out += [f"### {name} {{ #{name.lower()} }}", "", model.get("description", ""), ""]
        out += _properties(model)
    return "\n".join(out) + "\n"


def _route(method: str, path: str, route: dict[str, Any]) -> list[str]:
    out = [f"### `{method.upper()} {path}`", "", route.get("description") or route.get("summary", ""), ""]
    if route.get("parameters"):
        out += ["| parameter | in | type | |", "|---|---|---|---|"]
        for parameter in route["parameters"]:
            what = parameter.get("description") or ("required" if parameter.get("required") else "")
            out.append(f"| `{parameter['name']}` | {parameter['in']} | {_type(parameter['schema'])} | {_cell(what)} |")
        out.append("")
    for kind, body in route.get("requestBody", {}).get("content", {}).items():
        out += [f"Body, `{kind}`: {_type(body['schema'])}", ""]
        if "$ref" not in body["schema"]:
            out += _properties(body["schema"])
    out += ["| answer | | body |", "|---|---|---|"]
    for status, answer in route.get("responses", {}).items():
        content = answer.get("content", {})
        body = ", ".join(_type(c["schema"]) if c.get("schema") else f"`{kind}`" for kind, c in content.items())
        out.append(f"| {status} | {_cell(answer['description'])} | {body} |")
    return [*out, ""]


def _properties(model: dict[str, Any]) -> list[str]:
    if not model.get("properties"):
        return [_type(model), ""] if {"enum", "anyOf", "items"} & model.keys() else []
    needed = set(model.get("required", ()))
    out = ["| field | type | default | means |", "|---|---|---|---|"]
    for name, field in model["properties"].items():
        default = "required" if name in needed else f"`{json.dumps(field['default'])}`" if "default" in field else ""
        out.append(f"| `{name}` | {_type(field)} | {default} | {_cell(field.get('description', ''))} |")
    return [*out, ""]


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_type(one) for one in schema[several]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    kind = schema.get("format") or schema.get("type") or "any"
    bounds = [f"{sign} {schema[key]}" for key, sign in BOUNDS.items() if key in schema]
    return f"{kind} ({', '.join(bounds)})" if bounds else str(kind)


BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "maxLength": "length ≤"}


# ---------------------------------------------------------------- metrics and models


def metrics_table() -> str:
    """What /metrics answers, from the collectors themselves."""
    from bpr_service.runtime.dummy import DummyModels
    from bpr_service.runtime.engine import Engine
    from bpr_service.server.metrics import Metrics
    from bpr_service.server.settings import ServerSettings

    metrics = Metrics()
    metrics.watch(Engine(DummyModels(), ServerSettings(dummy=True)))
    out = ["| metric | kind | labels | means |", "|---|---|---|---|"]
    labels = {c._name: c._labelnames for c in vars(metrics).values() if hasattr(c, "_labelnames")}
    for family in metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        told = ", ".join(f"`{label}`" for label in labels.get(family.name, ()))
        out.append(f"| `{name}` | {family.type} | {told} | {_cell(family.documentation)} |")
    return "\n".join(out)


def alerts_table() -> str:
    """The alert rules that deployments load."""
    out = ["| alert | when | for | then |", "|---|---|---|---|"]
    for group in yaml.safe_load((ROOT / "docker" / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            then = _cell(rule["annotations"]["action"])
            out.append(f"| {rule['alert']} | `{_cell(rule['expr'])}` | {rule.get('for', '')} | {then} |")
    return "\n".join(out)


def model_cards() -> str:
    """One section a bundled model, from its card.json."""
    out = [
        "# Model cards",
        "",
        "Generated from the `card.json` of each bundled model. What they reach on held-out data is in "
        "[quality](quality.md); how to make your own is in [training](training.md).",
        "",
    ]
    for path in sorted((ROOT / "bpr_service" / "models").glob("*/card.json")):
        out += _card(json.loads(path.read_text()), (path.parent / "model.safetensors").stat().st_size)
    return "\n".join(out) + "\n"


def _card(card: dict[str, Any], size_bytes: int) -> list[str]:
    patch = card["patch"]
    config = card.get("recipe", {}).get("config", {})
    facts = {
        "version": card["version"],
        "network": card["network"]["name"],
        "weights": f"{size_bytes / 1e6:.1f} MB, safetensors",
        "SHA-256": f"`{card['sha256']}`" if card.get("sha256") else "",
        "patch": f"{patch['patch_size_px']} px, {patch['padding_px']} px of context on each side, "
        f"resized to {patch['network_size_px']} px",
        "placed": f"{patch['scheme']}, NMS {patch['nms_threshold']}" + (", covering" if patch["cover"] else ""),
        "gate": f"a changed mask is kept above certainty {card['gate']}" if card.get("gate") else "none",
        "trained": _trained(config),
    }
    out = [f"## {card['name']}", "", "| property | |", "|---|---|"]
    out += [f"| {name} | {_cell(value)} |" for name, value in facts.items() if value]
    out += [
        "",
        "Trained on:",
        "",
        "| data | share of the patches | images | coarse masks | terms |",
        "|---|---|---|---|---|",
    ]
    for data in card["data"]:
        share = f"{data['share']:.0%}" if "share" in data else ""
        cells = [
            data.get("source", ""),
            share,
            data.get("images", ""),
            data.get("coarse_masks", ""),
            data.get("terms", ""),
        ]
        out.append("| " + " | ".join(_cell(str(cell)) for cell in cells) + " |")

    figures = card.get("figures", {})
    if figures:
        out += ["", f"Measured by `{figures['command']}`, as shares:", "", "| set | measures |", "|---|---|"]
        for name, measures in figures["measures"].items():
            out.append(f"| {name} | " + ", ".join(f"{key} {value:.4g}" for key, value in measures.items()) + " |")
    out += ["", f"Licence: {card['license']}."] if card.get("license") else []
    return [*out, ""]


def _trained(config: dict[str, Any]) -> str:
    if not config:
        return ""
    run, optim = config["run"], config["optim"]
    return (
        f"{run['steps']} steps of {run['batch_size']} patches, {optim['name']}, {optim['schedule']} from {optim['lr']}"
    )
