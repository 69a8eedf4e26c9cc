"""A text with figures as one self-contained page."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path

import markdown as markdown_library

__all__ = ["self_contained"]

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { max-width: 100%; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { border-bottom: 1px solid #e4e4e4; padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #888; } td code { font-size: 11px; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  .claims tr { display: block; border-bottom: 2px solid #888; padding: 0.5rem 0; } .claims thead { display: none; }
  .claims td { display: block; border: 0; padding: 0.1rem 0; } .claims td:first-child { font-weight: bold; }
  .claims td:nth-child(4)::before { content: "holds if "; } .claims td:nth-child(5)::before { content: "n = "; }
  .claims td:nth-child(7)::before { content: "made by "; }
}
blockquote { border-left: 4px solid #D55E00; margin: 1rem 0; padding: 0 1rem; }"""


def self_contained(text: str, out: Path) -> str:
    """A page that holds its figures and its style.

    Args:
        text: Markdown; its first line is the title.
        out: Where the paths of figures begin.
    """
    body = markdown_library.markdown(text, extensions=["tables", "sane_lists"])
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    body = body.replace('"wide"', '"wide claims"', 1)  # the first one

    def inline(match: re.Match) -> str:
        data = base64.b64encode((out / html.unescape(match[1])).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="([^":]+\.png)"', inline, body)
    title = html.escape(text.splitlines()[0].lstrip("# ").replace("`", ""))
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )
