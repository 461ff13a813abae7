"""A Hydra application, as its author wrote it. Its config is in conf/config.yaml."""

import json
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    output = Path(HydraConfig.get().runtime.output_dir)
    (output / "weights").write_text(str(cfg.optim.lr))
    print(json.dumps({"loss": cfg.optim.lr, "depth": cfg.model.depth, "output": str(output)}))


if __name__ == "__main__":
    main()
