"""Train a PyTorch model on vectors that are made as the batches are drawn.

    python examples/data_loader.py [PORT]

The loader's batches are encoded in `collate`, so nothing is stored. Its worker processes are
forks: each finds that the client's sockets are its parent's, and opens its own.
"""

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from bert_serving.client import BertClient

DATA = Path(__file__).parent / "data" / "topics.tsv"
EPOCHS = 8


def main(port: int, num_workers: int = 2) -> None:
    """Print the loss of each epoch, and how many sentences the model gets right."""
    torch.manual_seed(0)
    rows = [row.split("\t") for row in DATA.read_text("utf-8").splitlines()]
    topics = sorted({topic for topic, _ in rows})

    with BertClient(port=port) as bc:

        def collate(batch: list[list[str]]) -> tuple[torch.Tensor, torch.Tensor]:
            vectors = bc.encode([text for _, text in batch])
            return torch.from_numpy(vectors), torch.tensor(
                [topics.index(topic) for topic, _ in batch]
            )

        loader = DataLoader(
            rows,
            batch_size=12,
            shuffle=True,
            collate_fn=collate,
            num_workers=num_workers,
            multiprocessing_context="fork" if num_workers else None,
        )
        model = torch.nn.LazyLinear(len(topics))
        model(next(iter(loader))[0])  # which tells it the vectors' size
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for epoch in range(EPOCHS):
            losses = []
            for vectors, wanted in loader:
                loss = torch.nn.functional.cross_entropy(model(vectors), wanted)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}")
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
        print(f"{right} of {len(rows)} are right")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5555)
