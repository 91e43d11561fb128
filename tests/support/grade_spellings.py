r"""Spellings of right answers, family by family: each (response, gold) must be accepted, none of the traps.

A family is a list of golds and a list of ways to write each of them; every pair of these is a case.
"""

WRITTEN = [  # how the last line of a response may state X
    "Answer: X", "Answer: **X**.", "**Answer: X**", "**Answer:** **X**", "Answer: `X`.", "Answer: $X$.",
    "Answer: *X*.",
    r"\boxed{X}", r"\boxed{X}.", r"$\boxed{X}$", r"**\boxed{X}**", r"\[\boxed{X}\]", r"$$\boxed{ X }$$",
    r"\boxed{\text{Answer: } X}", r"\boxed{\textbf{Answer:} X}", r"\boxed{\text{Final answer: }X}",
    r"\boxed{Answer: X}",
    r"\boxed{\text{The answer is } X}", r"\boxed{X}" + "\n\nThis is right, because we checked each step.",
    r"\boxed{X} is the final answer: we are done.", r"\boxed{X}, so the answer: done.",
    "Answer: X, because we checked each step.", "Answer: X, since nothing else is left.",
    "The answer is **X**.", "The final answer is $X$.", "The answer is X because nothing else is left.",
    "<think>It could be 77, so \\boxed{77}.</think>\nAnswer: X", "Answer: 77</think>\\boxed{X}",
    "<answer>X</answer>", "<answer>**X**</answer>", "Final Answer: X", "### Answer:\nX",
]  # fmt: skip

LARGE = r"\begin{pmatrix}" + r"\\".join(["1&2&3&4&5&6"] * 6) + r"\end{pmatrix}"

FAMILIES: dict[str, tuple[list[str], list[str]]] = {
    "statement": (
        ["18", r"\frac{3}{4}", "-7", r"\sqrt{2}", "(1, 2)", "1,000", "0.125", "[1, 2)", "x^2+1", r"2\pi", "3/4",
         "x = 5",         r"\{1, 2\}", r"50\%", "1, 2", "2^{10}", "3+4i", r"30^\circ"], WRITTEN,
    ),
    "units in words": (
        ["18"],
        [
            r"\boxed{18 " + words + "}"
            for words in (
                "apples", "fresh eggs", "square feet", "cubic centimeters", "miles per hour", "dollars per week",
                "points", r"\text{ square units}", r"\text{ meters per second}", r"\text{ cm}^2", r"\,\text{cm}^{2}",
                r"\ \mathrm{m/s}", "hours", r"\text{hours}", r"~\text{kg}", "students", "people in total", "cents",
                r"\text{ students}", "pieces of candy", "sq. ft", "kilometers", r"\text{ cubic units}",
            )
        ],
    ),
    "complex numbers": (
        ["3+4i"],
        [rf"\boxed{{{text}}}" for text in
         ("4i+3", "3 + 4i", r"3+4\mathrm{i}", r"3 + 4 \cdot i", "(3+4i)", "3+i4", "z = 3+4i", r"\frac{6+8i}{2}",
          "(2+i)^2", r"3-4i^3", "3 + 4𝑖")],
    ),
    "matrices": (
        [r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"],
        [rf"\boxed{{{text}}}" for text in
         (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}",
          r"\left(\begin{array}{cc} 1 & 2 \\ 3 & 4 \end{array}\right)",
          r"\begin{pmatrix}1&2\\ \frac{6}{2}&4\end{pmatrix}",
          r"\left[\begin{matrix}1&2\\3&4\end{matrix}\right]", r"A = \begin{pmatrix}1&2\\3&4\end{pmatrix}",
          r"\begin{pmatrix}1&\sqrt{4}\\3&2^2\end{pmatrix}", r"\begin{bmatrix}1 & 2\\3 & 4\\ \end{bmatrix}",
          r"\left[\begin{array}{c|c}1&2\\3&4\end{array}\right]", r"\frac{1}{2}\begin{pmatrix}2&4\\6&8\end{pmatrix}")],
    ),
    "matrix entries": (
        [r"\begin{pmatrix}\frac{1}{3}&-1\\50\%&\sqrt{2}\\1000&2x\end{pmatrix}"],
        [rf"\boxed{{{text}}}" for text in
         (r"\begin{pmatrix}0.33333333&i^2\\0.5&1.41421356\\1,000&2x\end{pmatrix}",
          r"\begin{bmatrix}1/3&e^{i\pi}\\\frac12&2^{0.5}\\10^3&\frac{4x}{2}\end{bmatrix}")],
    ),
    "large matrices": ([LARGE], [rf"\boxed{{{LARGE.replace('4', '2^2')}}}"]),
    "Unicode powers": (["1024", "2^{10}"], [rf"\boxed{{{text}}}" for text in ("2¹⁰", "4⁵", "32²", "2·2⁹", "𝟏𝟎𝟐𝟒")]),
    "Unicode exponents": (["y^{23}"], [rf"\boxed{{{text}}}" for text in ("y²³", "𝑦²³", "y²⁰·y³", "(y²³)")]),
    "Unicode roots": (["\\frac{1}{2}", "0.5"], [rf"\boxed{{{t}}}" for t in ("½", "¹⁄₂", "¹/₂", "2⁻¹", "√¼", "½·1")]),
    "Unicode fractions": (["7/8"], [rf"\boxed{{{text}}}" for text in ("⅞", "⁷⁄₈", "7⁄8", "1−⅛", "０．875")]),
    "Unicode letters": (
        [r"\frac{\pi}{3}"],
        [rf"\boxed{{{text}}}" for text in ("π/3", "⅓π", "π⁄3", r"\frac{π}{3}", "𝜋/3", "2π/6", "π·3⁻¹")],
    ),
    "Unicode indices": ([r"\log_2 10"], [rf"\boxed{{{text}}}" for text in (r"\log₂ 10", r"\log_{2} 10", r"1+\log₂5")]),
}  # fmt: skip

CASES = [
    (family, spelling.replace("X", gold), gold)
    for family, (golds, spellings) in FAMILIES.items()
    for gold in golds
    for spelling in spellings
]

TRAPS = [
    (r"\boxed{2^{100}-1}", "2^{100}"), (r"\boxed{1}", r"1-\frac{1}{2^{100}}"), (r"\boxed{1}", "1-1/2^{100}"),
    (r"\boxed{\sqrt{2}}", r"\sqrt{2}+10^{-40}"), (r"\boxed{10^{40}\pi}", r"10^{40}\pi+1"),
    (r"\boxed{\cos(10^{-30})}", "1"),
    (r"\boxed{x+2^{100}-1}", "x+2^{100}"), (r"\boxed{x+1/2^{100}}", "x"),
    (r"\boxed{\begin{pmatrix}2^{100}-1\end{pmatrix}}", r"\begin{pmatrix}2^{100}\end{pmatrix}"),
    (r"\boxed{\begin{pmatrix}2^{100}+0.5&x\end{pmatrix}}", r"\begin{pmatrix}2^{100}&x\end{pmatrix}"),
    (r"\boxed{\begin{pmatrix}\sqrt{2}+10^{-40}\end{pmatrix}}", r"\begin{pmatrix}\sqrt{2}\end{pmatrix}"),
    (r"\boxed{\begin{pmatrix}0.1234567\end{pmatrix}}", r"\begin{pmatrix}0.1234568\end{pmatrix}"),
    (r"\boxed{\begin{pmatrix}1&2\end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (rf"\boxed{{{LARGE.replace('4', '5', 1)}}}", LARGE),
    (r"\boxed{2^{100}-1, 3}", "2^{100}, 3"), (r"\boxed{262537412640768744}", r"e^{\pi\sqrt{163}}"),
    (r"\boxed{y²³}", "y^6"), (r"\boxed{y²³}", "y^2"), (r"\boxed{2¹⁰}", "20"), (r"\boxed{2¹⁰}", "210"),
    (r"\boxed{x₁₂}", "x_1"), (r"\boxed{1½}", "0.5"), (r"\boxed{⅞}", "78"),
    (r"<think>\boxed{5} and so on</think> The answer is 6.", "5"), (r"<think>\boxed{5}", "5"),
    (r"<think>The answer: 5. But", "5"), (r"</think>\boxed{6}<think>\boxed{5}", "5"),
    (r"\boxed{5}</think> I gave up.", "5"),
    ("Answer: **18** or **19**.", "18"), (r"\boxed{5}" + "\nAnswer: 6", "5"), (r"\boxed{\text{Answer: } 6}", "5"),
    ("Answer: 17 because 18 is too much", "18"), (r"\boxed{3-4i}", "3+4i"), (r"\boxed{3+4n}", "3+4i"),
    (r"\boxed{\begin{pmatrix}1&3\\2&4\end{pmatrix}}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
]  # fmt: skip
