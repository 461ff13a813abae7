"""Gradient boosting with XGBoost or LightGBM, as its author wrote it: the library prints."""

import argparse

import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("--library", choices=["xgboost", "lightgbm"], required=True)
parser.add_argument("--learning-rate", type=float, default=0.1)
parser.add_argument("--max-depth", type=int, default=3)
parser.add_argument("--rounds", type=int, default=4)
arguments = parser.parse_args()

rng = np.random.default_rng(0)
features = rng.normal(size=(400, 5))
labels = (features[:, 0] + 0.5 * features[:, 1] > 0).astype(int)
train, valid = slice(0, 300), slice(300, 400)
settings = {"learning_rate": arguments.learning_rate, "max_depth": arguments.max_depth}

if arguments.library == "xgboost":
    import xgboost

    xgboost.train(
        settings | {"objective": "binary:logistic", "nthread": 1},
        xgboost.DMatrix(features[train], labels[train]),
        arguments.rounds,
        evals=[(xgboost.DMatrix(features[valid], labels[valid]), "valid")],
    )
else:
    import lightgbm

    data = lightgbm.Dataset(features[train], labels[train])
    lightgbm.train(
        settings | {"objective": "binary", "num_threads": 1, "verbose": -1},
        data,
        arguments.rounds,
        valid_sets=[data.create_valid(features[valid], labels[valid])],
        callbacks=[lightgbm.log_evaluation(1)],
    )
