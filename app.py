"""Entry of the Space and of a local run: settings -> engine -> page -> launch."""

import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def main() -> int:
    from medchat.engines import open_engine
    from medchat.errors import UserError
    from medchat.feedback import open_dataset
    from medchat.knowledge import open_knowledge
    from medchat.seal import open_seal
    from medchat.settings import read_settings
    from medchat.triage import check

    settings = read_settings()
    try:
        with socket.socket() as probe:
            if probe.connect_ex((settings.host, settings.port)) == 0:
                raise UserError(f"Port {settings.port} is taken.", f"Type: python app.py --port {settings.port + 1}")
        with ThreadPoolExecutor(1) as pool:
            triage = pool.submit(check, "hello")  # reads its tables and weights while the model loads
            engine, notice = open_engine(settings)
            triage.result()
        knowledge = open_knowledge(settings.knowledge)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    from medchat.ui import build_demo, launch_options

    if notice:
        print(notice, file=sys.stderr)
    dataset, seal = open_dataset(settings.feedback_dataset), open_seal(settings.secret, on_space=settings.on_space)
    demo = build_demo(engine, knowledge, notice, dataset=dataset, seal=seal)
    demo.launch(server_name=settings.host, server_port=settings.port, share=settings.share, **launch_options())
    return 0


if __name__ == "__main__":
    sys.exit(main())
