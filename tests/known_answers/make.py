"""Write the known answers again, for a new version of the format: python tests/known_answers/make.py"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from elastic_arrays import digest, encoded, one_size, random_arrays  # noqa: E402
from moving_arrays import film_digest, random_moving, three_groups, write_moving  # noqa: E402


def main() -> None:
    for name, arrays in {
        "levels": random_arrays(500, sh_degree=2),
        "one_size": one_size(random_arrays(300, sh_degree=0, seed=5)),
    }.items():
        encoding = encoded(arrays)
        encoding.write(HERE / f"{name}.egs")
        (HERE / f"{name}.sha256").write_text(digest(encoding.decoded) + "\n")
    for name, groups in {"moving": [random_moving(total=400)], "film": three_groups()}.items():
        film = write_moving(HERE / f"{name}.egs", groups)
        (HERE / f"{name}.sha256").write_text(film_digest(film) + "\n")


if __name__ == "__main__":
    main()
