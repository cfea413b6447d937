"""Question 17: what saves memory in training, fine-tuning and inference. The ledger: each method's bytes foretold and
counted, its peak over that of plain training, and what it costs in loss. Clipping is a row of it, and saves nothing."""

from llmlab.handbook.question import Check, Claim, Question, Text, Verdict
from llmlab.handbook.rank_bytes import RANKS, SHAPE
from llmlab.handbook.savers_figures import BROAD, LENGTHS, LONG, MATRIX, figures, raced
from llmlab.handbook.savers_tables import evidence, tables

QUESTION = Question(
    number=17,
    tier="seconds",
    claim=Text(
        "Eight methods: share parameters; accumulate gradients; clip gradients, which avoids their explosion and so "
        "needs less memory; train on several machines, which needs less on each; quantise; prune what is unimportant; "
        "distil, a smaller teacher guiding a larger student; work in chunks. They may be combined.",
        "共八种：共享参数；累积梯度；裁剪梯度，既防爆炸，也就省了内存；多机多卡训练，每台占用变少；量化；剪去不重要的参"
        "数；蒸馏，由小的教师带大的学生；分块计算。几种可以并用。",
    ),
    correction=Text(
        "Clipping bounds an update and frees nothing; by the norm of the whole gradient it even needs all gradients at "
        "once, which an update fused into the backward pass never has (LOMO). In distillation the teacher is the large "
        "model: the student is what saves, once deployed, and training it holds both. Data parallelism copies weights, "
        "gradients and moments to each device; what is sharded (ZeRO, FSDP, tensor parallel) is divided. Zeros in a "
        "dense tensor take what they took; CSR with int32 indices pays only above 50 % of zeros in fp32, 67 % in fp16; "
        "rows and columns cut out do save. Accumulation saves activations alone, and equals the large batch only where "
        "one count of all tokens divides. Sharing saves weights, neither activations nor work. Missing are the main "
        "tools: checkpointing, mixed precision, adapters (LoRA and others), a base in few bits under them (QLoRA), "
        "8-bit, factored and low-rank optimizer states, the fused update, a chunked loss, offloading, tiled attention, "
        "paged and quantised caches.",
        "裁剪只限制更新的幅度，不腾出任何内存；按整体范数裁剪还要求全部梯度同时在场，反而用不上随反向传播即时更新的做"
        "法（LOMO）。蒸馏中教师是大模型：省在日后部署学生之时，训练时两个模型都在内存里。数据并行把权重、梯度、动量照抄"
        "到每个设备；分片（ZeRO、FSDP、张量并行）才会均摊。稠密张量里的零照样占位；CSR（int32 索引）在 fp32 须超过 50%"
        "，fp16 须超过 67% 的零才划算；整行整列地去掉才真省。累积只省激活，且须以全部词元数统一相除才等于大批次。共享省"
        "权重，不省激活与计算量。所漏的恰是主力：激活重算、混合精度、LoRA 等适配器、其下的低位底座（QLoRA）、八位或分解"
        "或低秩的优化器状态、融合更新、分块损失、卸载、分块注意力、分页与量化缓存。",
    ),
    run=Text(
        "One recipe, each method a change of one field of it; the bytes of its step foretold from shapes and counted "
        "while the real loop takes two steps, in a small model whose peak is activations and in one whose peak is "
        "weights and what goes with them. Gradients of a ragged batch at once, row by row, and as a mean of means, in "
        "float64. Two processes over gloo tell what they hold. The losses are those of small models after equally many "
        "steps; distillation runs both ways on the same text. Offloading needs a second memory and is told on paper "
        "only; tiled attention and caches are questions 11 and 12.",
        "同一配方，每种方法只改一处；每步的字节数由形状预测，再在真实训练循环走两步时清点，一个小模型的峰值在激活，另一"
        "个在权重及其附属。参差批次的梯度分三种算法：一次算、逐行累积、均值再平均（float64）。两个进程经 gloo 通信，各"
        "报所占。损失取小模型走过相同步数之后；蒸馏在同一文本上两个方向都做。卸载需要另一种内存，只作书面说明；分块注意力"
        "与缓存见第 11、12 题。",
    ),
    papers=(
        "Pascanu et al. 2013, On the difficulty of training recurrent neural networks, arXiv 1211.5063",
        "Lv et al. 2023, LOMO, arXiv 2306.09782",
        "Hinton et al. 2015, Distilling the Knowledge in a Neural Network, arXiv 1503.02531",
        "Rajbhandari et al. 2020, ZeRO, arXiv 1910.02054",
        "Lan et al. 2020, ALBERT, arXiv 1909.11942",
        "Press & Wolf 2017, Using the Output Embedding to Improve Language Models, arXiv 1608.05859",
        "Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174",
        "Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740",
        "Hu et al. 2021, LoRA, arXiv 2106.09685",
        "Dettmers et al. 2023, QLoRA, arXiv 2305.14314",
        "Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861",
        "Shazeer & Stern 2018, Adafactor, arXiv 1804.04235",
        "Zhao et al. 2024, GaLore, arXiv 2403.03507",
    ),
    errors={
        "E17.1": "W",
        "E17.2": "W",
        "E17.3": "M",
        "E17.4": "M",
        "E17.5": "M",
        "E17.6": "M",
        "E17.7": "I",
    },
    claims=(
        Claim(
            "clipping",
            "clipping gradients saves memory",
            "裁剪梯度节省内存",
            (
                Check(
                    "clipping_change",
                    "<",
                    0.01,
                    "peak without clipping, change of it, both shapes",
                    "不裁剪时峰值的变化，两种形状",
                ),
                Check(
                    "fused_gradients",
                    "<",
                    0.5,
                    "gradients alive at once with the update fused into backward, which cannot clip, over all",
                    "融合更新（不能裁剪）时同时在场的梯度占全部之比",
                ),
            ),
            Verdict.REFUTED,
            errors=("E17.1",),
        ),
        Claim(
            "distillation",
            "a smaller teacher guides a larger student, which saves memory",
            "小教师带大学生，由此节省内存",
            (
                Check(
                    "reversed_over_alone",
                    ">",
                    1.0,
                    "training the large one under a small teacher over training it alone, peak",
                    "小教师带大模型，训练峰值比独自训练",
                ),
                Check(
                    "more_over_teacher",
                    ">",
                    1.0,
                    "what training a small one under a large teacher takes more, over the teacher's weights",
                    "大教师带小模型，训练多占的内存比教师权重",
                ),
                Check("student_share", "<", 0.2, "the student's weights over the teacher's", "学生权重比教师权重"),
            ),
            Verdict.CORRECTED,
            errors=("E17.2",),
        ),
        Claim(
            "who teaches",
            "a smaller model teaches a larger one",
            "由较小的模型教较大的模型",
            (
                Check(
                    "taught_upper",
                    "<",
                    0.0,
                    "held-out nats a byte, small taught by large minus small from scratch, 95 % bound",
                    "留出文本每字节奈特，大教小减小模型从头训练，95% 上界",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E17.2",),
            race="distillation",
        ),
        Claim(
            "distributed",
            "training on several devices takes less on each",
            "分布到多个设备，每个设备占用变少",
            (
                Check(
                    "ddp: all", "==", 1.0, "data parallel: one of two ranks over one alone", "数据并行：两卡之一比单卡"
                ),
                Check("zero1: optimizer", "<", 0.55, "ZeRO-1: optimizer's state", "ZeRO-1：优化器状态"),
                Check("zero1: parameters", "==", 1.0, "ZeRO-1: weights", "ZeRO-1：权重"),
                Check("fsdp: all", "<", 0.55, "FSDP: all of it", "FSDP：全部"),
            ),
            Verdict.CORRECTED,
            errors=("E17.3",),
        ),
        Claim(
            "two processes",
            "as foretold, so in two processes",
            "两个进程实际所占与预测一致",
            (
                Check(
                    "ranks_gap", "==", 0.0, "bytes off the formula, any way and kind", "与公式相差的字节数，各种方式"
                ),
                Check("ddp: measured", "==", 1.0, "data parallel, counted", "数据并行，清点所得"),
            ),
            kind="control",
            race="rank_bytes",
        ),
        Claim(
            "pruning",
            "removing unimportant parameters takes less memory",
            "去掉不重要的参数，占用变少",
            (
                Check("dense_saved", "==", 0.0, "bytes saved by half zeros, dense", "一半置零，稠密存放省下的字节"),
                Check("csr_fp32_45", ">", 1.0, "CSR over dense, fp32, 45 % zeros", "CSR 比稠密，fp32，45% 为零"),
                Check("csr_fp32_55", "<", 1.0, "the same at 55 %", "同上，55%"),
                Check("csr_fp16_60", ">", 1.0, "CSR over dense, fp16, 60 % zeros", "CSR 比稠密，fp16，60% 为零"),
                Check("csr_fp16_75", "<", 1.0, "the same at 75 %", "同上，75%"),
                Check(
                    "structured_share", "<", 0.6, "half of the inner width gone: its weights", "内宽减半后的权重占比"
                ),
            ),
            Verdict.CORRECTED,
            errors=("E17.4",),
        ),
        Claim(
            "accumulation",
            "accumulating gradients takes less memory",
            "累积梯度占用变少",
            (
                Check(
                    "accumulation of 4: counted over",
                    "<",
                    0.7,
                    "peak with four micro-batches over one batch, activations at the peak",
                    "四个小批的峰值比整批，激活为主",
                ),
                Check(
                    "accumulation_weights_gap",
                    "==",
                    0.0,
                    "change of weights and moments, bytes",
                    "权重与动量的变化，字节",
                ),
                Check(
                    "accumulated_gap", "<", 1e-6, "its gradient off the whole batch's, relative", "与整批梯度的相对差"
                ),
                Check(
                    "mean_of_means_gap", ">", 0.01, "the same where rows' means are averaged", "改为各行均值再平均时"
                ),
            ),
            Verdict.CORRECTED,
            errors=("E17.5",),
        ),
        Claim(
            "sharing",
            "sharing parameters takes less memory",
            "共享参数占用变少",
            (
                Check("shared_weights", "<", 0.6, "one block at all depths: weights", "各层共用一块：权重"),
                Check("tied_weights", "<", 0.95, "a tied head: weights", "输出与嵌入共用：权重"),
                Check("shared_activations", "==", 1.0, "one block at all depths: activations", "各层共用一块：激活"),
                Check("shared_flops", "==", 1.0, "one block at all depths: work", "各层共用一块：计算量"),
            ),
            Verdict.CORRECTED,
            errors=("E17.6",),
        ),
        Claim(
            "quantisation",
            "fewer bits a weight take less memory",
            "降低权重位数占用变少",
            (
                Check("int8_share", "<", 0.27, "SmolLM2 in int8 over fp32, bytes", "SmolLM2 的 int8 比 fp32，字节"),
                Check("int4_share", "<", 0.2, "the same in int4, embedding in int8", "同上，int4，嵌入 int8"),
            ),
        ),
        Claim(
            "chunks",
            "working in chunks takes less memory",
            "分块计算占用变少",
            (
                Check("chunked loss: counted over", "<", 0.95, "peak with the loss in chunks", "分块算损失的峰值"),
                Check("chunked_loss_gap", "<", 1e-4, "what that changes, nats a token", "由此带来的变化，每词元奈特"),
            ),
        ),
        Claim(
            "the main tools",
            "these eight are the methods",
            "方法就是这八种",
            (
                Check(
                    "checkpointing, full: counted over",
                    "<",
                    0.7,
                    "checkpointing: peak where activations are it",
                    "激活重算：激活为主时的峰值",
                ),
                Check("checkpointed_gap", "==", 0.0, "checkpointing: change of the gradient", "激活重算：梯度的变化"),
                Check("bf16 products: counted over", "<", 0.9, "products in bf16: peak", "bf16 乘法：峰值"),
                Check(
                    "lora_trained_share", "<", 0.05, "LoRA of SmolLM2, rank 8: what learns", "SmolLM2 秩 8：可训练占比"
                ),
                Check("lora_formula_gap", "==", 0.0, "LoRA: numbers off r (d_in + d_out)", "与 r (d_in + d_out) 之差"),
                Check("lora_merged_gap", "<", 1e-5, "LoRA: logits changed by merging", "合并引起的 logits 变化"),
                Check(
                    "lora, int4 base: counted over",
                    "<",
                    0.8,
                    "QLoRA: peak over training all weights",
                    "QLoRA：峰值比训练全部权重",
                ),
                Check(
                    "adamw8bit_share",
                    "<",
                    0.27,
                    "8-bit AdamW: states of SmolLM2's blocks over fp32",
                    "八位 AdamW：SmolLM2 各层的状态比 fp32",
                ),
                Check("adafactor_share", "<", 0.01, "Adafactor: the same of the model", "Adafactor：全模型的状态比"),
                Check("galore: broad over", "<", 0.85, "GaLore: peak where states are it", "GaLore：状态为主时的峰值"),
                Check("in backward: broad over", "<", 0.95, "fused update: peak there", "融合更新：同上"),
            ),
            Verdict.CORRECTED,
            errors=("E17.7",),
        ),
        Claim(
            "free of charge",
            "saving memory changes what is learnt (not said)",
            "省内存会不会改变学到的东西，未说",
            (
                Check(
                    "moved_loss_gap",
                    "<",
                    1e-3,
                    "nats a byte that checkpointing, accumulation, chunks or the fused update change, any seed",
                    "激活重算、累积、分块、融合更新带来的变化，每字节奈特，各种子最大者",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E17.7",),
            race="memory_savers",
        ),
        Claim(
            "counting",
            "bytes foretold are bytes counted",
            "预测的字节数与清点的一致",
            (Check("worst_gap", "<", 0.1, "worst row of the ledger, relative", "账本中最差一行的相对差"),),
            kind="control",
        ),
    ),
    figures=figures,
    evidence=evidence,
    tables=tables,
    races=("rank_bytes", "memory_savers", "distillation"),
    raced=raced,
    uses=(
        "llmlab/handbook/savers_figures.py",
        "llmlab/handbook/training_ledger.py",
        "llmlab/handbook/training_rows.py",
        "llmlab/handbook/distilling.py",
        "llmlab/handbook/rank_bytes.py",
        "llmlab/interpret/live_bytes.py",
        "llmlab/objectives/distill.py",
        "llmlab/training/memory.py",
        "llmlab/training/step.py",
        "llmlab/training/parallel/memory.py",
    ),
    settings={
        "shapes": [LONG, BROAD],
        "lengths": list(LENGTHS),
        "matrix": list(MATRIX),
        "ranks": [RANKS, SHAPE],
    },
)
