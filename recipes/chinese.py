"""The words of the tables in Chinese, for the READMEs that end with .zh-CN.md; numbers stay as they are."""

import re

WORDS = {
    "noise σ": "噪声 σ", "nearest color": "最近颜色", "unigram posterior": "一元后验", "bigram forward-backward": "二元前向后向",
    "trigram forward-backward": "三元前向后向", "network alone": "单独的网络", "**network with n-grams**": "**网络加 n 元模型**",
    "network with n-grams": "网络加 n 元模型", "**network**": "**网络**", "training": "训练方式", "steps": "步数", "rate": "学习率",
    "nearest color gets half": "最近颜色读对一半处", "reference recipe: pixel MSE, uniform t, digits, raster": "参考做法：像素 MSE、均匀 t、digits、raster",
    "network alone, digits palette": "单独的网络，digits 调色板", "network alone, raster layout": "单独的网络，raster 排布",
    "network alone, reads colors only": "单独的网络，只读颜色", "network alone, no blocks between tokens": "单独的网络，无词元间模块",
    "network alone, no self-conditioning": "单独的网络，无自条件",
    "network with trigrams for the last quarter (default)": "网络，最后四分之一加三元（默认）",
    "preset": "预设", "parameters": "参数量", "MFLOPs a token": "每词元 MFLOPs", "trunk": "主干", "token path": "词元通路", "vocabulary": "词表",
    "not yet measured": "尚未测量", "test tokens": "测试词元", "checkpoint": "检查点", "**recovered**": "**恢复**",
    "bits per byte, at most": "每字节比特数上界", "english": "英文", "chinese": "中文",
    "nats per character": "每字符 nats", "bits per byte": "每字节比特数", "WikiText-2": "WikiText-2", "English books": "英文书", "Chinese novels": "中文小说", "3 minutes": "3 分钟", "15 minutes": "15 分钟", "3 minutes, no bf16 units": "3 分钟，无 bf16 单元", "15 minutes, no bf16 units": "15 分钟，无 bf16 单元", "60 minutes, no bf16 units": "60 分钟，无 bf16 单元", "60 minutes": "60 分钟",
    "system": "系统", "gaps, both sides": "空缺，两侧已知", "gaps, left side": "空缺，仅左侧", "… seed 1": "……种子 1", "MAUVE": "MAUVE", "model": "模型", "after": "训练", "size": "大小", "optimizer": "优化器", "dropout": "丢弃率", "nats per token, val": "每词元 nats，验证", "nats per character, test": "每字符 nats，测试",
    "**masked diffusion**": "**掩码扩散**", "**autoregressive**": "**自回归**",
    "bigrams, counted": "二元计数", "trigrams, counted": "三元计数", "autoregressive transformer": "自回归 Transformer",
    "masked diffusion (bound)": "掩码扩散（上界）", "network alone (bound)": "单独的网络（上界）",
    "**network with n-grams** (bound)": "**网络加 n 元模型**（上界）", "1.88 (CPU), 1.47 (A100)": "1.88（CPU），1.47（A100）", "nanoGPT by characters, as published": "nanoGPT，按字符，公开数字",
    "tokens in gaps found": "空缺中找回的词元", "trigrams, both sides": "三元，两侧已知", "autoregressive, left side": "自回归，仅左侧",
    "trigrams, left side": "三元，仅左侧", "masked diffusion, both sides": "掩码扩散，两侧已知", "masked diffusion, left side": "掩码扩散，仅左侧",
    "network with n-grams, both sides": "网络加 n 元模型，两侧已知", "network with n-grams, left side": "网络加 n 元模型，仅左侧",
    "network alone, both sides": "单独的网络，两侧已知", "network alone, left side": "单独的网络，仅左侧",
    "all steps even in log noise": "全部步在对数噪声上均匀", "all steps where training times are": "全部步在训练时刻所在处",
    "masked diffusion": "掩码扩散", "texts": "文本", "passes": "前向次数", "perplexity": "困惑度", "entropy, bits": "熵，比特",
    "distinct 4-grams": "不同的四元", "4-grams seen": "训练中出现过的四元", "words that exist": "真实存在的词", "test texts": "测试文本",
    "trigrams": "三元", "bigrams": "二元", "tokens by frequency": "按词频抽样", "autoregressive": "自回归",
    "1 passes of posterior": "posterior，1 次前向", "4 passes of posterior": "posterior，4 次前向", "8 passes of euler": "Euler，8 次前向",
    "32 passes of euler": "Euler，32 次前向", "32 passes of stochastic": "stochastic，32 次前向", "autoregressive, greedy": "自回归，贪心",
    "32 passes": "32 次前向", "Euler": "Euler", "temperature 0.9": "温度 0.9", "temperature 0.8": "温度 0.8", "temperature 0.7": "温度 0.7", "network with n-grams, guided": "网络加 n 元模型，受引导", "64 passes": "64 次前向",
    "patch 4, self-conditioning 0.25": "图块 4，自条件 0.25", "self-conditioning 0": "自条件 0", "self-conditioning 0.5": "自条件 0.5", "patch 2": "图块 2", "patch 1": "图块 1",
    "nats per token": "每词元 nats", "BrierLM of 4 tokens": "4 个词元的 BrierLM", "… of the first": "……首个词元", "passes per token": "每词元前向次数",
    "TFLOPs of training": "训练 TFLOPs", "MFLOPs per token and pass": "每词元每次前向 MFLOPs", "churn 10": "搅动 10", "churn 40": "搅动 40",
    "churn 40, noise 1.05": "搅动 40，噪声 1.05", "stochastic": "stochastic", "stochastic, temperature 0.9": "stochastic，温度 0.9",
    "Euler, 64 candidates of the n-grams": "Euler，n 元模型 64 个候选",
    "answers right": "答对的比例", "addition": "加法", "sorting": "排序", "lookup": "查字典",
    "network": "网络", "where": "在哪里", "tokens/s of training": "训练，词元/秒", "fraction of the matmul rate": "占矩阵乘速率的比例",
    "against the same network on whole pictures": "相比整图的同一网络", "against JiT's layout": "相比 JiT 的排布",
    "one full picture sampled": "采样一整幅图", "against GPT-2 with a cache": "相比带缓存的 GPT-2", "two CPU cores": "两个 CPU 核", "one CPU thread": "一个 CPU 线程", "one H100": "一块 H100", "the same with `--compile`": "同上，加 `--compile`",
    "signals to all processes of a run, and a closed terminal": "发给一次运行所有进程的信号，以及关闭的终端",
    "a program on a disk that takes no more of a file": "磁盘不再接受某个文件时的程序", "a program in a read-only folder": "只读文件夹里的程序",
    "no room for a new checkpoint": "新检查点写不下",
    "held-out tokens reconstructed": "留出词元的重建率", "… with noise of 0.3 standard deviations on the vectors": "……向量加 0.3 倍标准差的噪声",
    "dimensions in use": "使用中的维数", "variational bound of the whole model": "整个模型的变分上界", "encoding, decoding": "编码、解码速度",
    "noise level t": "噪声水平 t", "bits of each number": "每个数的比特", "bits per token": "每词元比特", "tokens recovered": "恢复的词元", "decoder only": "只用解码器", "decoder and bigrams": "解码器加二元",
    "decoder and trigrams": "解码器加三元", "**network and trigrams**": "**网络加三元**", "network, each chunk without context": "网络，每块无上下文",
    "128 tokens of JSON as": "128 个词元的 JSON 的载体", "40 random tokens as": "40 个随机词元的载体", "visual tokens": "视觉词元", "ratio": "压缩比", "clean": "未受损", "light": "轻度", "heavy": "重度",
    "**codebook**: 10 tokens to a block, 8 colors, 4 px": "**色码**：每块 10 个词元，8 色，4 像素", "text (plain tokens)": "文本（普通词元）",
    "conv: 10 embeddings through a learned convolution": "`conv`：10 个嵌入经过学到的卷积", "pool: means of 10 embeddings": "pool：10 个嵌入的平均", "truncate: the first tenth": "truncate：前十分之一",
    "rendered page, not trained on": "渲染页面，未训练", "QR, not trained on": "QR，未训练", "codec": "编码方式",
    "bytes per visual token: long clean text": "每视觉词元字节数：长文本，未受损", "… with parity and finder patterns, 1,000 characters": "……带校验与定位图，1,000 字符",
    "documents read back after `light`": "`light` 之后读回的文档", "… after `heavy`": "……`heavy` 之后", "rendered page, 9 pt": "渲染页面，9 pt",
    "tokens to a block or vector": "每块或每向量的词元", "**color code**": "**色码**", "learned convolution": "学到的卷积", "mean of embeddings": "嵌入的平均",
    "tokens read": "读入词元", "reader trained on": "阅读器的训练", "then mostly the color code": "随后主要是色码", "hay": "填充文本", "English": "英文", "Chinese": "中文", "document as": "文档的载体", "prefill": "预填充", "GFLOPs": "GFLOPs", "of which vision": "其中视觉", "decoding, per token": "解码，每词元", "cache": "缓存",
    "change": "改动", "**none: Muon, 2e-3**": "**无：Muon，2e-3**", "AdamW, 1e-3": "AdamW，1e-3", "AdamW, 3e-3": "AdamW，3e-3", "no crops": "无裁剪", "TrivialAugment": "`TrivialAugment`",
    "random erasing, 0.25": "随机擦除，0.25", "MixUp, 0.2": "`MixUp`，0.2", "CutMix, 1": "`CutMix`，1", "no label smoothing": "无标签平滑",
    "plain text": "普通文本", "rendered page": "渲染页面", "english: tokens": "英文：词元", "chinese: tokens": "中文：词元",
    "**network alone**": "**单独的网络**", "vector by vector, energy head": "逐向量，能量头", "vector by vector, flow head": "逐向量，流头", "vector by vector, posterior head": "逐向量，后验头", "4 tokens at once, no vector": "一次 4 个词元，无向量",
    "TokCom, 4 to a vector, trigrams inside": "TokCom，每向量 4 个，内部带三元", "text as it goes on": "真实的后文", "seconds": "秒",
    "vector by vector, energy head, beside the tokens' loss": "逐向量，能量头，旁有词元的损失", "vector by vector, flow head, beside the tokens' loss": "逐向量，流头，旁有词元的损失",
    "tried": "次数", "went wrong": "出错", "row": "行", "validation": "验证", "test accuracy": "测试准确率", "images seen": "看过的图像", "images/s": "图像/秒", "": "",
}  # fmt: skip
PATTERNS = (
    (r"([\d,]+) tokens as", r"\1 个词元的载体"), (r"([\d,]+) tokens", r"\1 个词元"), (r"color code, (\d+) tokens to a block", r"色码，每块 \1 个词元"), (r"learned convolution, (\d+) tokens to a vector", r"学到的卷积，每向量 \1 个词元"),
    (r"([\d.]+) s", r"\1 秒"), (r"(\d+) ms", r"\1 毫秒"),
    (r"([\d,]+) characters as", r"\1 个字符的载体"), (r"color code, (\d+) colors, (\d+) px", r"色码，\1 色，\2 像素"),
    *(
        (rf"guided by {name}, ([\d.]+){more}", rf"由{translated}引导，\1{then}")
        for name, translated in (("itself without n-grams", "去掉 n 元模型的自身"), ("itself without its earlier pass", "没有上一次前向的自身"), ("its epoch 10", "第 10 轮的自身"))
        for more, then in (("", ""), (r", temperature ([\d.]+)", r"，温度 \2"), (r", churn (\d+)", r"，搅动 \2"))
    ),
    (r"TokCom, (\d) to a vector", r"TokCom，每向量 \1 个"), (r"(\d) tokens at once, no vector", r"一次 \1 个词元，无向量"),
    *((rf"vector by vector, {head} head{more}, (\d) to a vector", rf"逐向量，{kind}头{then}，每向量 \1 个") for head, kind in (("energy", "能量"), ("flow", "流"), ("posterior", "后验")) for more, then in (("", ""), (", beside the tokens' loss", "，旁有词元的损失"))),
    (r"(`[\w./]+`) killed at random moments", r"\1 在随机时刻被杀死"), (r"(`[\w./]+`) in two processes killed at random moments", r"\1（两个进程）在随机时刻被杀死"),
    ("values that flags should not have", "参数不该有的值"), (r"(\d+) tracebacks, (\d+) hangs, (\d+) otherwise wrong", r"\1 次崩溃，\2 次挂起，\3 次其他错误"),
    ("a program on a full disk", "磁盘已满的程序"), ("a trainer whose folder is removed", "文件夹被删除的训练程序"),
    ("gradients that are no numbers, settings at their edge, empty to full pictures", "非数值的梯度、边界上的设置、从空到满的图"), (r"(\d+) not recovered from, or not told in one line", r"\1 次没有恢复，或没有用一行说明"),
    ("ten programs at once, fifty requests at once to the page for a minute", "同时十个程序，同时五十个请求访问网页一分钟"), (r"(\d+) errors, or memory that grows", r"\1 次出错或内存增长"),
    ("trainings again, builds by 1 to 4 threads, under other hash seeds", "重复的训练、1 到 4 个线程及不同哈希种子的构建"), (r"(\d+) with another result", r"\1 次结果不同"), (r"(\d+) of (\d+) runs ended otherwise than one left alone", r"\2 次运行中 \1 次的结果与未受打扰的不同"),
    (r"(\d+) without a checkpoint within ten seconds", r"\1 次没有在十秒内留下检查点"), (r"(\d+) not told in one line, or a file left half-written", r"\1 次没有用一行说明，或留下写了一半的文件"),
    (r"(\d+) former ones harmed", r"\1 次损坏了先前的"), (r"damaged files, (\d+) kinds", r"损坏的文件，\1 种"), (r"(\d+) tracebacks, (\d+) hangs", r"\1 次崩溃，\2 次挂起"),
    (r"([\d,.]+%) of ([\d,]+)", r"\1（共 \2）"), (r"([\d.]+) times as fast", r"\1 倍"), (r"(\d+) of (\d+)", r"\1 / \2"),
    (r"([\d,]+) tokens, (\d+) passes: ([\d.]+) s", r"\1 词元，\2 次前向：\3 秒"), (r"([\d.]+) nats per token", r"每词元 \1 nats"),
    (r"([\d,]+) and ([\d,]+) tokens/s", r"\1 与 \2 词元/秒"), (r"([\d.]+%) of tokens; to the letter with `--exact`", r"\1 的词元；加 `--exact` 一字不差"),
    (r"([\d,]+); with that noise ([\d,]+)", r"\1；加上述噪声 \2"),
    *((rf"wrong tokens of ([\d,]+) through vectors and back: {name}", rf"经向量往返，\1 个词元中错误的：{translated}") for name, translated in ((r"\*Jane Eyre\*", "《简·爱》"), (r"\*Honglou meng\*", "《红楼梦》"), ("random tokens", "随机词元"))),
    (r"BrierLM of the next chunk, (\d+) forward passes", r"下一块的 BrierLM，\1 次前向"), (r"codebook, (\d+) colors, (\d+) px", r"色码，\1 色，\2 像素"),
    (r"codebook, (\d+) colors, (\d+) px, (\d+) bytes of parity", r"色码，\1 色，\2 像素，\3 字节校验"), (r"JAB Code, (\d+) colors, (\d+) px, by its standard", r"JAB Code，\1 色，\2 像素，按其标准"),
    (r"(QR v\d+-[LMQH]), (\d+) px", r"\1，\2 像素"), (r"(JiT-\w+/\d+), ([\d×]+), ([\d,]+) tokens, batch (\d+)", r"\1，\2，\3 词元，批 \4"),
    (r"`(\w+)`, ten minutes, no crops (\(`[^`]+`\))", r"`\1`，十分钟，无裁剪 \2"), (r"`(\w+)`, an hour (\(`[^`]+`\))", r"`\1`，一小时 \2"), (r"`(\w+)`, (\d+) epochs (\(`[^`]+`\))", r"`\1`，\2 轮 \3"),
)  # fmt: skip


def translate(table: str) -> str:
    """A Markdown table with its words in Chinese."""
    lines = []
    for line in table.split("\n"):
        cells = [_cell(cell.strip()) for cell in line.strip().strip("|").split("|")] if line.startswith("|") else None
        lines.append(line if cells is None or set(line) <= set("|-") else "| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(cell: str) -> str:
    if cell in WORDS:
        return WORDS[cell]
    for pattern, replacement in PATTERNS:
        if re.fullmatch(pattern, cell):
            return re.sub(pattern, replacement, cell)
    if found := re.fullmatch(r"(.+), ([\d.]+) draws?", cell):
        return f"{_cell(found[1])}，{found[2]} 次抽取"
    return cell
