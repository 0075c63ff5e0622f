"""A classifier on top of sentence vectors: a few labelled sentences are enough.

    pip install scikit-learn
    python examples/classifier.py [PORT]

The vectors are made once; what is trained is a logistic regression, in a fraction of a second.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import classification_report
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from bert_serving.client import BertClient

DATA = Path(__file__).parent / "data" / "topics.tsv"
NEW = [
    "Stir the rice until it is creamy.",
    "The stock exchange opens at nine.",
    "Is it windy today?",
]


def main(port: int) -> None:
    """Print how well topics are told apart, and the topics of new sentences."""
    labels, texts = zip(
        *(row.split("\t") for row in DATA.read_text("utf-8").splitlines()), strict=True
    )
    with BertClient(port=port) as bc:
        vectors, new_vectors = bc.encode(list(texts)), bc.encode(NEW)
    model = LogisticRegression(max_iter=1000)
    folds = StratifiedKFold(4, shuffle=True, random_state=0)
    predicted = cross_val_predict(model, vectors, np.array(labels), cv=folds)
    print(classification_report(labels, predicted))
    for text, topic in zip(NEW, model.fit(vectors, labels).predict(new_vectors), strict=True):
        print(f"{topic:>8}: {text}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5555)
