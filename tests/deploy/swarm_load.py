"""`python -m tests.deploy.swarm_load URL SECONDS`: one photo again and again.

Prints the seconds that went badly; status 1 if a request failed.
"""

import sys
import time

from tests.deploy.load import load
from tests.service.packages import jpeg


def main(url: str, seconds: int) -> int:
    with load(url, jpeg("green"), users=2) as answers:
        for second in range(seconds):
            before = dict(answers.counts)
            time.sleep(1)
            now = dict(answers.counts)
            answered, failed = now.get("200", 0) - before.get("200", 0), sum(v for k, v in now.items() if k != "200")
            if failed > sum(v for k, v in before.items() if k != "200") or answered < 5:
                sys.stdout.write(f"          load, second {second}: {answered} answered, so far {now}\n")
                sys.stdout.flush()
    sys.stdout.write(f"          load: {answers.counts['200']} answered, failed: {answers.failed() or 'none'}\n")
    return 1 if answers.failed() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
