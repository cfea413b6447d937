"""How the figures of question 17 are told."""

from __future__ import annotations

from collections.abc import Mapping

from llmlab.handbook.costs import spread
from llmlab.handbook.question import Table, Text
from llmlab.handbook.training_rows import LEDGER

CHINESE = {  # of the rows whose names are more than a name
    "bf16 moments": "bf16 动量",
    "adamw8bit": "八位 AdamW",
    "sgd with momentum": "带动量的 SGD",
    "in backward": "反向中更新",
    "checkpointing, full": "激活重算，全部",
    "checkpointing, selective": "激活重算，选择性",
    "accumulation of 4": "累积四次",
    "chunked loss": "分块损失",
    "bf16 products": "bf16 乘法",
    "not clipped": "不裁剪",
    "untied head": "输出不共用嵌入",
    "shared layers": "各层共用",
    "all weights": "全部权重",
    "lora": "LoRA 适配",
    "lora, int8 base": "LoRA，int8 底座",
    "lora, int4 base": "LoRA，int4 底座",
    "dora": "DoRA 适配",
    "ia3": "IA3 适配",
    "prefix": "前缀",
    "prompt": "提示",
    "ptuning": "P-tuning 提示",
    "bottleneck": "瓶颈适配器",
    "freeze": "冻结前两层",
    "all weights, with biases": "全部权重，带偏置",
    "bitfit": "BitFit 偏置",
}


def evidence(f: Mapping[str, float]) -> Text:
    en = (
        f"The peak without clipping differs by {f['clipping_change']:.1%}; with the update fused into the backward "
        f"pass {f['fused_gradients']:.0%} of the gradients are alive at once. A small teacher beside a large student "
        f"makes training take {f['reversed_over_alone']:.2f} times as much, a large one beside a small student "
        f"{f['taught_over_alone']:.2f} times; the student's weights are {f['student_share']:.0%} of the teacher's. One "
        f"of two ranks holds {f['ddp: all']:.2f} of what one alone does by data parallelism, "
        f"{f['zero1: all']:.2f} by ZeRO-1, {f['fsdp: all']:.2f} by FSDP, {f['tensor: all']:.2f} by tensor parallelism. "
        f"CSR breaks even at {f['csr_fp32_even']:.1%} of zeros in fp32, {f['csr_fp16_even']:.1%} in fp16; dense zeros "
        f"save {f['dense_saved']:.0f} bytes. Accumulated gradients are {f['accumulated_gap']:.0e} off the whole "
        f"batch's, a mean of means {f['mean_of_means_gap']:.0%}. One block at all depths has "
        f"{f['shared_weights']:.0%} of the weights, {f['shared_activations']:.0%} of the activations and of the work. "
        f"SmolLM2 in int8 and int4 takes {f['int8_share']:.0%} and {f['int4_share']:.0%}; LoRA of rank 8 trains "
        f"{f['lora_trained_share']:.1%} of it; 8-bit states take {f['adamw8bit_share']:.0%} of its blocks' (embeddings "
        f"stay in fp32: {f['adamw8bit_all']:.0%} of all). Not every adapter saves: DoRA's peak is "
        f"{f['dora: counted over']:.2f} times that of training all weights. Bytes foretold are at most "
        f"{f['worst_gap']:.1%} off those counted."
    )
    zh = (
        f"不裁剪时峰值相差 {f['clipping_change']:.1%}；更新融入反向传播时，同时在场的梯度只有 "
        f"{f['fused_gradients']:.0%}。大学生旁放一个小教师，训练占用成 {f['reversed_over_alone']:.2f} 倍，小学生旁放大"
        f"教师则为 {f['taught_over_alone']:.2f} 倍；学生权重是教师的 {f['student_share']:.0%}。两进程之一的占用比单进"
        f"程：数据并行 {f['ddp: all']:.2f}，ZeRO-1 {f['zero1: all']:.2f}，FSDP {f['fsdp: all']:.2f}，张量并行 "
        f"{f['tensor: all']:.2f}。CSR 的盈亏点：fp32 为 {f['csr_fp32_even']:.1%} 的零，fp16 为 "
        f"{f['csr_fp16_even']:.1%}；稠密的零省 {f['dense_saved']:.0f} 字节。累积的梯度与整批相差 "
        f"{f['accumulated_gap']:.0e}，均值再平均则差 {f['mean_of_means_gap']:.0%}。各层共用一块，权重为 "
        f"{f['shared_weights']:.0%}，激活与计算量为 {f['shared_activations']:.0%}。SmolLM2 的 int8 与 int4 占 "
        f"{f['int8_share']:.0%} 与 {f['int4_share']:.0%}；秩 8 的 LoRA 训练其中 {f['lora_trained_share']:.1%}；八位状态"
        f"占各层的 {f['adamw8bit_share']:.0%}（嵌入留在 fp32，故为全部的 {f['adamw8bit_all']:.0%}）。适配器并非都省："
        f"DoRA 的峰值是训练全部权重的 {f['dora: counted over']:.2f} 倍。预测与清点至多相差 {f['worst_gap']:.1%}。"
    )
    if "taught" in f:
        en += (
            f" Two gloo processes hold what the formula says ({f['ranks_gap']:.0f} bytes off). In nats a byte, "
            f"{f['taught_seeds']:.0f} seeds: the small model taught by the large minus from scratch "
            f"{spread(f, 'taught')}; the large taught by the small {spread(f, 'reversed')}."
        )
        zh += (
            f"两个 gloo 进程所占与公式相差 {f['ranks_gap']:.0f} 字节。每字节奈特，{f['taught_seeds']:.0f} 个种子：大教"
            f"小减从头训练为 {spread(f, 'taught')}；小教大则为 {spread(f, 'reversed')}。"
        )
    return Text(en, zh)


def tables(f: Mapping[str, float]) -> list[Table]:
    heads: tuple[Text | str, ...] = (
        Text("method", "方法"),
        Text("foretold, MB", "预测，MB"),
        Text("counted, MB", "清点，MB"),
        Text("over first", "比首行"),
        Text("weights at peak", "权重为主"),
    )
    raced = "ledger_seeds" in f
    title = Text(
        "Peak of a step; over the first row of its group where activations are the peak, and where weights are",
        "每步峰值；以及比同组首行：激活为主时，权重为主时",
    )
    if raced:
        heads += (Text("loss", "损失"), Text("change of it", "损失变化"))
        title = Text(
            f"{title.en}; nats a byte after equally many steps, {f['ledger_seeds']:.0f} seeds",
            f"{title.zh}；相同步数后的每字节奈特，{f['ledger_seeds']:.0f} 个种子",
        )
    rows = []
    for row in LEDGER:
        cells: list[Text | str] = [Text(row.name, CHINESE[row.name]) if row.name in CHINESE else row.name]
        cells += [f"{f[f'{row.name}: {what}'] / 1e6:.2f}" for what in ("foretold", "counted")]
        cells.append(f"{f[f'{row.name}: counted over']:.2f}")
        broad = f.get(f"{row.name}: broad over")
        cells.append("-" if broad is None else f"{broad:.2f}")
        if raced:
            name = f"{row.name}: loss change"
            cells += [f"{f[f'{row.name}: loss']:.3f}", spread(f, name) if name in f else "-"]
        rows.append(tuple(cells))
    return [Table(title, heads, tuple(rows))]
