"""Blind pairwise judgement in the browser: two pictures of one prompt, which is better, and what was invented.

Every answer is on the disk before the next pair shows, so a review may be stopped and gone on with at any time, by several
reviewers at once; --summary tells the result.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from l2p.cli.options import Mode, PictureCount, Port, check_modes, number_type
from l2p.errors import UserError, warn
from l2p.students.resolve import results_folder, student_help

EXAMPLES = """\
examples:
  l2p review runs/quickstart/student --against landscapes --num-images 40
  l2p review runs/new/student --against runs/old/student --prompts prompts.txt
  l2p review pictures/ --against others/
  l2p review runs/quickstart/student --summary
"""
WHEN_STOPPED = "; every answer is kept: run the same command again to go on"


JUDGE = Mode("a review", ("against", "prompts", "num_images", "host", "port"))
GENERATED = Mode("a review of a student", ("device", "dtype"))
SUMMARY = Mode("--summary", ("json",))


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("student", metavar="STUDENT", help=f"{student_help()}, or a folder of pictures")
    parser.add_argument(
        "--against", metavar="OTHER", help="another student, a teacher, or a folder of pictures"
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE[#COLUMN]",
        help="prompts: .txt (a line each), .jsonl, .json, .csv or .parquet; of folders of pictures one a picture, in natural "
        "order or by file_name",
    )
    parser.add_argument(
        "--num-images", type=number_type(PictureCount), default=30, metavar="N", help="pairs (30)"
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="where all is kept; else review-NAME beside the student"
    )
    parser.add_argument("--summary", action="store_true", help="print what was judged so far, and end")
    parser.add_argument("--json", action="store_true", help="the summary as JSON")
    add_address(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--dtype", default="auto", help="auto, bf16, fp16 or fp32")


def add_address(parser: argparse.ArgumentParser) -> None:
    """The options that say where a page is served."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="127.0.0.1: this machine alone; 0.0.0.0: the network"
    )
    parser.add_argument("--port", type=number_type(Port), default=8765, help="of the page (8765)")


def run(args: argparse.Namespace) -> None:
    from l2p.picture_folder import holds_pictures
    from l2p.review.serving import check_address

    generated = () if args.summary or holds_pictures(args.student) else (GENERATED,)
    check_modes(args, (JUDGE, GENERATED, SUMMARY), {SUMMARY if args.summary else JUDGE, *generated})
    check_address(args.host, args.port)
    out = Path(args.out) if args.out else results_folder(args.student, "review")
    if args.summary:
        from l2p.review.summary import summarize

        summary = summarize(out)
        print(json.dumps(summary, indent=2, ensure_ascii=False)) if args.json else _tell(summary, out)
        return
    if not args.against:
        raise UserError("--against is missing: name another student, a teacher or a folder of pictures")
    from l2p.locks import locked
    from l2p.review.pairs import prepare
    from l2p.review.server import review_app
    from l2p.review.serving import serve

    with locked(out, "--out"):
        review = prepare(
            out,
            args.student,
            args.against,
            prompts=args.prompts,
            num_images=args.num_images,
            device=args.device,
            dtype=args.dtype,
        )
        if "num_images" in args.given and len(review.pairs) < args.num_images:
            warn(f"--num-images is {args.num_images}, but there are {len(review.pairs)} pairs")
        print(f"{len(review.pairs)} pairs; answers are kept in {out / 'answers'}")
        serve(
            review_app(review, out, args.host, (args.student, args.against)), args.host, args.port, "review"
        )


def _tell(summary: dict[str, Any], out: Path) -> None:
    print(f"{summary['a']} beside {summary['b']}, {summary['pairs']} pairs")
    for name, count in summary["reviewers"].items():
        print(f"  {name:<24}{count} judged")
    for question, title in (("follows", "follows the prompt"), ("real", "looks more real")):
        found = summary[question]
        low, high = (100 * end for end in found["interval"])
        kappa = "-" if found["kappa"] is None else f"{found['kappa']:.2f} ({found['kappa_kind']})"
        print(
            f"  {title:<24}{100 * found['win_rate']:.1f} % [{low:.1f}, {high:.1f}] for {summary['a']}, kappa {kappa}"
        )
    print(
        f"  {'boxes':<24}{summary['boxes']['a']} on {summary['a']}, {summary['boxes']['b']} on {summary['b']}"
    )
    print(f"  {'heat maps':<24}{out / 'heat-a.png'}, {out / 'heat-b.png'}")
