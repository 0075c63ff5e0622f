"""Several clients get the results of one: what one encodes, all members of a group receive.

    python examples/broadcast.py [PORT]

The members are told everything that is sent to the group, whole calls in one piece; who
sends gets its answer as always. One could fill an index while another trains on the same
vectors, and each sentence would be computed once.
"""

import sys
import threading

from bert_serving.client import BertClient

GROUP = "news"
HEADLINES = ["Rain ends the long drought", "Bank raises interest rates", "Team wins in extra time"]


def receive(name: str, port: int, is_member: threading.Barrier) -> None:
    """Print what others send to the group, until nothing comes for a second."""
    with BertClient(port=port, identity=name) as bc:
        bc.join(GROUP)
        is_member.wait()
        for message in bc.listen(timeout=1000):
            print(f"{name} received {message.embedding.shape} from {message.sender}")


def main(port: int) -> None:
    """Have two members receive what a third client encodes."""
    is_member = threading.Barrier(3)
    members = [
        threading.Thread(target=receive, args=(name, port, is_member))
        for name in ("index", "model")
    ]
    for member in members:
        member.start()
    is_member.wait()
    with BertClient(port=port, identity="editor") as bc:
        for headline in HEADLINES:
            bc.encode([headline], group=GROUP)
        print(f"editor got {bc.encode(HEADLINES, group=GROUP).shape}")
    for member in members:
        member.join()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5555)
