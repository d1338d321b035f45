"""`oca-control`: the controller's daemon."""

from __future__ import annotations

import asyncio
import signal

import structlog
import typer
import uvloop
from aiohttp import web

from control import lock
from control.app import application
from control.ctl import accounts, authority
from control.ctl.accounts import Config
from control.database import open_database
from control.fleet import enrolment
from control.patience import HEADS
from control.settings import ControlSettings
from oca import config, journal, notify
from oca.config import split_address
from oca.errors import ConfigError, guarded

_log = structlog.get_logger()
app = typer.Typer(
    help="Run the controller: catalog, demand, placement, fills and steering of a fleet of appliances.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(accounts.app, name="operator")
app.add_typer(authority.app, name="authority")


@app.command()
def serve(settings_file: Config) -> None:
    """Serve the API, steering and manifests until SIGTERM."""
    settings = config.load(settings_file, ControlSettings)
    journal.start("oca-control")
    with lock.held(settings.database):
        uvloop.run(_serve(settings))


@app.command()
def migrate(settings_file: Config) -> None:
    """Bring the database to this program's version, in one transaction, and end."""
    settings = config.load(settings_file, ControlSettings)
    uvloop.run(_migrate(settings))


async def _migrate(settings: ControlSettings) -> None:
    await (await open_database(settings.database)).dispose()


async def _serve(settings: ControlSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    address = settings.listen
    host, port = split_address(address)
    runner = web.AppRunner(await application(settings), access_log=None, keepalive_timeout=75.0)
    await runner.setup()
    assert runner.server is not None, "it has been set up"
    watching = asyncio.create_task(runner.app[HEADS].watch(runner.server))
    try:
        await web.TCPSite(runner, host, port, backlog=4096).start()
        bound: dict[str, object] = {}
        secure = runner.app[enrolment.DESK].listener
        if secure is not None:
            address = settings.tls.listen
            host, port = split_address(address)
            await web.TCPSite(runner, host, port, backlog=4096, ssl_context=secure.context).start()
            bound = {"tls": address, "tls_port": runner.addresses[-1][1]}
        # Settings may leave the ports to the kernel with 0.
        _log.info("serving", listen=settings.listen, port=runner.addresses[0][1], **bound)
        if settings.api.open:
            _log.warning("the API is open: whoever reaches it may change everything; see [api] in docs/operators.md")
        notify.notify("READY=1")
        await stop.wait()
        notify.notify("STOPPING=1")
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {error.strerror}; is another server there?") from None
    finally:
        watching.cancel()
        await runner.cleanup()
    _log.info("stopped")


def main() -> None:
    """Entry point of the console script."""
    guarded(app)
