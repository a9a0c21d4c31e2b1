"""`gridledger identity invite`: let a home enrol, as one text that its owner pastes."""

import argparse
import html
from dataclasses import replace
from pathlib import Path

from consortium.ca.registry import AlreadyRegisteredError, RegistryError
from consortium.identity.certificates import write_private
from consortium.node.network import Network, NetworkError
from gridledger_client import fingerprint

from . import qr
from .output import answer

MY_LINK = "https://my.home-assistant.io/redirect/config_flow_start/?domain=gridledger"


def add_command(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the verb to `gridledger identity`."""
    invite = verbs.add_parser(
        "invite",
        parents=[common],
        help="let a home enrol, as a text and a page to hand over",
        description="Registers an enrolment id at a utility's authority, for one enrolment, and "
        "prints an invitation: the text that a home's owner pastes into Home Assistant. Whoever "
        "has it can enrol in the home's name, once: hand it over as you would a password.",
    )
    invite.add_argument("id", help="enrolment id, such as the home's name in your books")
    invite.add_argument("--connection", required=True, help="the home's connection point")
    invite.add_argument("--utility", help="who invites (default: the first)")
    invite.add_argument(
        "--gateway",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="where homes reach a gateway; several for failover (default: all of this network)",
    )
    invite.add_argument("--ca", help="where homes reach the authority (default: as configured)")
    invite.add_argument(
        "--again",
        action="store_true",
        help="a new secret for an id that is registered already: its key was lost",
    )
    invite.add_argument(
        "--page", type=Path, help="also write a page with QR code and copy button (mode 0600)"
    )
    invite.add_argument(
        "--page-url",
        metavar="URL",
        help="where homes find the page that `identity invitation-page` wrote: the QR code then "
        "leads there, the invitation behind the #",
    )
    invite.add_argument("--qr", action="store_true", help="also print the QR code")
    invite.set_defaults(run=_invite)

    page = verbs.add_parser(
        "invitation-page",
        help="write the page that QR codes lead to, without any invitation in it",
        description="Writes a page for a utility's web server. It shows the invitation that "
        "stands behind the # of its address, which a browser sends to nobody.",
    )
    page.add_argument("out", type=Path)
    page.add_argument("--json", action="store_true", help="answer in JSON")
    page.set_defaults(run=_invitation_page)


async def _invite(options: argparse.Namespace) -> None:
    network = Network.load(options.data_dir)
    utility = network.utility(options.utility) if options.utility else network.utilities[0]
    try:
        invitation = network.invite(utility, options.id, options.connection, again=options.again)
    except AlreadyRegisteredError as error:
        raise NetworkError(f"{error}; --again gives it a new secret") from error
    except RegistryError as error:
        raise NetworkError(str(error)) from error
    invitation = replace(
        invitation,
        gateways=tuple(options.gateway) or invitation.gateways,
        ca_url=options.ca or invitation.ca_url,
    )
    text = invitation.encode()
    link = f"{options.page_url}#{text}" if options.page_url else ""
    shown = fingerprint(network.tls_bundle_pem)
    if options.page:
        write_private(options.page, page(text, link or text, utility.name).encode())
    lines = [
        f"Invitation for {options.connection} by {utility.name}, for one enrolment:",
        "",
        text,
        "",
        *([f"As a link: {link}", ""] if link else []),
        f"Fingerprint of the CA bundle: {shown}",
        *(
            [f"The page is {options.page}; hand it over as you would a password."]
            if options.page
            else []
        ),
        *(["", qr.text((link or text).encode())] if options.qr else []),
    ]
    answer(
        options,
        {
            "invitation": text,
            "link": link,
            "enrollment_id": options.id,
            "connection_id": options.connection,
            "fingerprint": shown,
        },
        "\n".join(lines),
    )


async def _invitation_page(options: argparse.Namespace) -> None:
    options.out.write_text(page("", "", ""), encoding="utf-8")
    answer(options, {"page": str(options.out)}, f"The page is {options.out}.")


def page(invitation: str, coded: str, utility: str) -> str:
    """Return the page: the invitation to copy, a QR code, and the way to Home Assistant.

    Without an invitation it shows the one behind the # of its own address.
    """
    code = f"<figure>{qr.svg(coded.encode())}</figure>" if coded else ""
    return (
        _PAGE.replace("{{invitation}}", html.escape(invitation))
        .replace("{{code}}", code)
        .replace("{{by}}", f" by {html.escape(utility)}" if utility else "")
        .replace("{{my}}", MY_LINK)
    )


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Your GridLedger invitation</title>
<style>
  :root { color-scheme: light dark; font: 17px/1.5 system-ui, sans-serif; }
  body { margin: 0 auto; max-width: 34rem; padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.5rem; font-weight: 600; margin: 0 0 .5rem; }
  ol { padding-inline-start: 1.3rem; }
  li { margin: .6rem 0; }
  textarea { box-sizing: border-box; width: 100%; height: 7rem; padding: .7rem; font: 13px/1.4
    ui-monospace, monospace;
    border: 1px solid #8888; border-radius: 10px; overflow-wrap: anywhere; }
  button, a.go { display: inline-block; min-height: 44px; box-sizing: border-box; padding: .6rem
    1.2rem; border: 0; border-radius: 22px; background: #0277bd; color: #fff; font: inherit;
    text-decoration: none; cursor: pointer; margin: .4rem 0; }
  a.go { background: #3b7d3f; }
  figure { margin: 1.5rem auto 0; max-width: 17rem; }
  figure svg { display: block; border-radius: 10px; }
  .quiet { opacity: .75; font-size: .88rem; }
</style>
<h1>Your invitation{{by}}</h1>
<p>It brings your home into its microgrid. It works once, and for your home alone: treat it like a
password.</p>
<ol>
  <li><textarea id="text" readonly aria-label="Invitation">{{invitation}}</textarea><br>
    <button id="copy" type="button">Copy invitation</button> <span id="said" role="status"></span>
  <li><a class="go" href="{{my}}" rel="noreferrer">Open Home Assistant</a><br>
    <span class="quiet">Or there: Settings, Devices &amp; services, Add integration,
    GridLedger.</span>
  <li>Paste it, compare the fingerprint with the one in your utility's letter, and confirm your
    meters.
</ol>
{{code}}
<script>
  const text = document.getElementById("text");
  const found = /gridledger1\\.[A-Za-z0-9_-]+\\.[0-9a-f]{8}/.exec(location.hash);
  if (found && !text.value) text.value = found[0];
  const said = document.getElementById("said");
  if (!text.value) said.textContent = "This address holds no invitation.";
  document.getElementById("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.value);
      said.textContent = "Copied.";
    } catch {
      text.select();
      said.textContent = document.execCommand("copy") ? "Copied." : "Press Ctrl+C.";
    }
  });
</script>
</html>
"""
