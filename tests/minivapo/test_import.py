"""What `import minivapo` may need: torch and no more; no accelerator stack, no data sets, no network."""

import subprocess
import sys
import textwrap


def run(code):
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr


def test_import_and_training_need_no_accelerator_or_network(tiny_model, tmp_path):
    """Blocked modules cannot be imported and sockets cannot be opened; a run trains all the same."""
    run(f"""
        import socket, sys

        for name in ("deepspeed", "vllm", "datasets", "math_verify", "pebble", "bitsandbytes", "flash_attn", "wandb"):
            sys.modules[name] = None

        def refuse(*args, **kwargs):
            raise RuntimeError("network access")

        socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse

        import minivapo, minivapo.vapo, minivapo.interfaces, minivapo.measure, minivapo.tasks
        assert "transformers" not in sys.modules, "the algorithm itself needs no transformers"
        import minivapo.local, minivapo.runs.training, minivapo.tasks.base, minivapo.cli, minivapo.tasks.math
        import dataclasses, torch

        torch.set_num_threads(1)
        from minivapo.vapo import PRESETS, train
        from minivapo.tasks import make_task
        from minivapo.local import LocalEngine

        config = dataclasses.replace(
            PRESETS["grpo"], steps=1, batch_size=4, mini_batch=4, group_size=2, max_new_tokens=8, eval_problems=2
        )
        lines = list(train(config, make_task("chain"), LocalEngine({str(tiny_model)!r}, config)))
        assert [line["step"] for line in lines] == [0, 1]
        assert not torch.cuda.is_initialized()
    """)


def test_importing_the_package_imports_nothing():
    run("""
        import sys
        before = set(sys.modules)
        import minivapo
        assert set(sys.modules) - before == {"minivapo"}, set(sys.modules) - before
        assert minivapo.__version__
    """)
