"""A cross-validation with scikit-learn, as its author wrote it: it prints its mean."""

import argparse

from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

parser = argparse.ArgumentParser()
parser.add_argument("-C", type=float, default=1.0, help="inverse strength of the regularisation")
parser.add_argument("--gamma", default="scale")
parser.add_argument("--kernel", choices=["linear", "rbf"], default="rbf")
parser.add_argument("--folds", type=int, default=5)
arguments = parser.parse_args()

features, labels = load_digits(return_X_y=True)
model = make_pipeline(
    StandardScaler(), SVC(C=arguments.C, gamma=float(arguments.gamma), kernel=arguments.kernel)
)
scores = cross_val_score(model, features[:500], labels[:500], cv=arguments.folds)
print("Accuracy: %0.3f (+/- %0.3f)" % (scores.mean(), 2 * scores.std()))  # noqa: UP031
